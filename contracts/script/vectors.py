"""Writes contracts/test/vectors/eip712.json: specs, receipts, vouchers and consents with digests and signatures.

Two chains times two contracts for one of each, then the smallest and the largest values; throwaway keys.
`abi` repeats the fields as one ABI-encoded struct, which Solidity reads; `highS` is the signature's refused twin.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eth_abi.abi import encode
from eth_keys.datatypes import PrivateKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from openlora.contracts.bindings.job_queue import JobSpec, Receipt
from openlora.contracts.bindings.sessions import Voucher
from openlora.contracts.eip712 import hot_key_digest, receipt_digest, spec_digest, voucher_digest, work_id
from openlora.typed_data import Domain, sign_digest

PATH = Path(__file__).resolve().parent.parent / "test" / "vectors" / "eip712.json"
SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

SPEC = JobSpec(
    client=to_checksum_address("0x" + "c1" * 20),
    recipe_id=7,
    input_digest=keccak(text="input"),
    max_in_tokens=512,
    max_out_tokens=256,
    in_price_per_k=10**18,
    out_price_per_k=3 * 10**18,
    deadline=1_900_000_000,
    lease_secs=120,
    flags=5,
    nonce=2**255 + 1,
)
RECEIPT = Receipt(
    work_id=bytes(32),
    node=to_checksum_address("0x" + "0d" * 20),
    recipe_id=7,
    spec_hash=bytes(32),
    input_digest=SPEC.input_digest,
    output_digest=keccak(text="output"),
    in_tokens=100,
    out_tokens=200,
    seed=2**63 + 3,
    fingerprint_root=keccak(text="fingerprint"),
    data_attr_root=keccak(text="attribution"),
    engine_profile=1,
    finish_reason=1,
    finished_at=1_899_999_000,
    fee=7 * 10**17,
)
VOUCHER = Voucher(keccak(text="session"), 9 * 10**17, keccak(text="lines"), 1_899_999_500)
CONSENT = (to_checksum_address("0x" + "0e" * 20), 1_899_999_600)  # operator, deadline


def extreme(abi: str, *, largest: bool) -> tuple[Any, ...]:
    """A struct's values with every field at its least or its greatest."""

    def value(kind: str) -> Any:
        if kind == "address":
            return to_checksum_address(("ff" if largest else "00") * 20)
        if kind == "bytes32":
            return (b"\xff" if largest else b"\0") * 32
        return 2 ** int(kind.removeprefix("uint")) - 1 if largest else 0

    return tuple(value(kind) for kind in abi.strip("()").split(","))


def vector(
    domain: Domain, spec: JobSpec, receipt: Receipt, voucher: Voucher, consent: tuple[Any, ...], key: bytes
) -> dict[str, Any]:
    digest = receipt_digest(domain, receipt)
    signature = sign_digest(key, digest)
    high_s = SECP256K1_ORDER - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + high_s.to_bytes(32, "big") + bytes([55 - signature[64]])
    return {
        "chainId": domain.chain_id,
        "verifyingContract": domain.verifying_contract,
        "spec": shown(spec),
        "specDigest": "0x" + spec_digest(domain, spec).hex(),
        "receipt": shown(receipt),
        "receiptDigest": "0x" + digest.hex(),
        "voucher": shown(voucher),
        "voucherDigest": "0x" + voucher_digest(domain, voucher).hex(),
        "consent": {"operator": consent[0], "deadline": str(consent[1])},
        "consentDigest": "0x" + hot_key_digest(domain, *consent).hex(),
        "privateKey": "0x" + key.hex(),
        "signer": PrivateKey(key).public_key.to_checksum_address(),
        "signature": "0x" + signature.hex(),
        "highS": "0x" + twin.hex(),
    }


def shown(struct: JobSpec | Receipt | Voucher) -> dict[str, str]:
    fields = {
        name: "0x" + value.hex() if isinstance(value, bytes) else str(value) for name, value in asdict(struct).items()
    }
    return fields | {"abi": "0x" + encode([struct.ABI], [struct.to_abi()]).hex()}


def vectors() -> str:
    """The file's text."""
    rows = []
    for chain_id in (1, 31337):
        for contract in ("11", "22"):
            domain = Domain(chain_id, to_checksum_address("0x" + contract * 20))
            receipt = replace(
                RECEIPT,
                work_id=work_id(domain.verifying_contract, 42),
                spec_hash=spec_digest(domain, SPEC),
            )
            rows.append(vector(domain, SPEC, receipt, VOUCHER, CONSENT, keccak(text="hot key")))
    domain = Domain(2**63 - 1, to_checksum_address("0x" + "33" * 20))
    for largest in (False, True):
        spec = JobSpec.from_abi(extreme(JobSpec.ABI, largest=largest))
        receipt = Receipt.from_abi(extreme(Receipt.ABI, largest=largest))
        voucher = Voucher.from_abi(extreme(Voucher.ABI, largest=largest))
        consent = extreme("(address,uint40)", largest=largest)
        rows.append(vector(domain, spec, receipt, voucher, consent, keccak(text=f"key {largest}")))
    return json.dumps({"vectors": rows}, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(vectors(), encoding="utf-8")
