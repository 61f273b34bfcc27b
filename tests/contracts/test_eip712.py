"""Digests, signatures and prices, against the vectors that Solidity checks too and against eth_account's encoder."""

import json
import runpy
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from openlora import typed_data
from openlora.contracts import JobSpec, Receipt, Voucher, eip712
from openlora.typed_data import Domain, InvalidSignature

CONTRACTS = Path(__file__).parents[2] / "contracts"
NODE_PEER_DIGEST = "e49fd3dc806fa227e263b2dbc64d3063ae9a3cf4a1d9d36c19ec486d4f2f6e9d"
WATCH_JOB_DIGEST = "f6e94ce85b1c3c87d04097cf5dc81e60125eb78aea2b2f1be47ae1ba2b1cedb7"
VECTORS: list[dict[str, Any]] = json.loads((CONTRACTS / "test/vectors/eip712.json").read_text())["vectors"]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def struct(kind: type[JobSpec] | type[Receipt] | type[Voucher], shown: dict[str, str]) -> Any:
    """A struct from its shown fields, by their declared types."""
    names = [field.name for field in fields(kind)]
    types = kind.ABI.strip("()").split(",")
    values: list[Any] = [
        unhex(shown[name]) if abi == "bytes32" else shown[name] if abi == "address" else int(shown[name])
        for name, abi in zip(names, types, strict=True)
    ]
    return kind(*values)


def domain_of(vector: dict[str, Any]) -> Domain:
    return Domain(vector["chainId"], vector["verifyingContract"])


def by_eth_account(domain: Domain, type_string: str, values: Iterable[Any]) -> bytes:
    """The digest by eth_account, from the type string alone."""
    name, _, members = type_string.rstrip(")").partition("(")
    listed = [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in members.split(",")]
    message = encode_typed_data(
        {
            "name": "OpenLoRA",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.verifying_contract,
        },
        {name: listed},
        dict(zip((field["name"] for field in listed), values, strict=True)),
    )
    return bytes(_hash_eip191_message(message))


def test_the_committed_vectors_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(CONTRACTS / "script" / "vectors.py"))
    assert script["vectors"]() == (CONTRACTS / "test/vectors/eip712.json").read_text()


@pytest.mark.parametrize("vector", VECTORS)
def test_digests_match_vectors_and_an_independent_encoder(vector: dict[str, Any]) -> None:
    domain = domain_of(vector)
    spec, receipt = struct(JobSpec, vector["spec"]), struct(Receipt, vector["receipt"])
    assert eip712.spec_digest(domain, spec) == unhex(vector["specDigest"])
    assert eip712.receipt_digest(domain, receipt) == unhex(vector["receiptDigest"])
    assert eip712.spec_digest(domain, spec) == by_eth_account(domain, eip712.JOB_SPEC_TYPE, spec.to_abi())
    assert eip712.receipt_digest(domain, receipt) == by_eth_account(domain, eip712.RECEIPT_TYPE, receipt.to_abi())


@pytest.mark.parametrize("vector", VECTORS)
def test_vouchers_and_consents_match_vectors_and_an_independent_encoder(vector: dict[str, Any]) -> None:
    domain, voucher = domain_of(vector), struct(Voucher, vector["voucher"])
    consent = (vector["consent"]["operator"], int(vector["consent"]["deadline"]))
    assert eip712.voucher_digest(domain, voucher) == unhex(vector["voucherDigest"])
    assert eip712.hot_key_digest(domain, *consent) == unhex(vector["consentDigest"])
    assert eip712.voucher_digest(domain, voucher) == by_eth_account(domain, eip712.VOUCHER_TYPE, voucher.to_abi())
    assert eip712.hot_key_digest(domain, *consent) == by_eth_account(domain, eip712.HOT_KEY_TYPE, consent)


def test_no_digest_is_anothers() -> None:
    """Across chains, contracts and kinds: what was signed for one can never be taken for another."""
    kinds = ("specDigest", "receiptDigest", "voucherDigest", "consentDigest")
    assert len({vector[kind] for vector in VECTORS for kind in kinds}) == len(VECTORS) * len(kinds)


@given(peer_id=st.binary(max_size=64), job_id=st.integers(0, 2**256 - 1))
def test_peer_digests_match_an_independent_encoder(peer_id: bytes, job_id: int) -> None:
    domain, operator = domain_of(VECTORS[0]), VECTORS[0]["signer"]
    bound = typed_data.node_peer_digest(domain, operator, peer_id)
    assert bound == by_eth_account(domain, typed_data.NODE_PEER_TYPE, (operator, peer_id))
    watched = typed_data.watch_job_digest(domain, job_id, peer_id)
    assert watched == by_eth_account(domain, typed_data.WATCH_JOB_TYPE, (job_id, peer_id))
    session = job_id.to_bytes(32, "big")
    asked = typed_data.watch_session_digest(domain, session, peer_id)
    assert asked == by_eth_account(domain, typed_data.WATCH_SESSION_TYPE, (session, peer_id))


def test_peer_digests_are_fixed() -> None:
    domain, operator = domain_of(VECTORS[0]), VECTORS[0]["signer"]
    peer_id = bytes.fromhex("002408011220") + bytes(range(32))
    assert typed_data.node_peer_digest(domain, operator, peer_id).hex() == NODE_PEER_DIGEST
    assert typed_data.watch_job_digest(domain, 42, peer_id).hex() == WATCH_JOB_DIGEST


@pytest.mark.parametrize("vector", VECTORS)
def test_signatures_match_the_vectors(vector: dict[str, Any]) -> None:
    digest, signature = unhex(vector["receiptDigest"]), unhex(vector["signature"])
    assert typed_data.sign_digest(unhex(vector["privateKey"]), digest) == signature
    assert typed_data.signer_of(digest, signature) == vector["signer"].lower()


def test_a_signature_counts_on_one_chain_and_contract() -> None:
    home, *others = VECTORS[:4]
    signer = home["signer"].lower()
    receipt, signature = struct(Receipt, home["receipt"]), unhex(home["signature"])
    assert len({(v["chainId"], v["verifyingContract"]) for v in others}) == 3
    for other in others:
        assert typed_data.signer_of(eip712.receipt_digest(domain_of(other), receipt), signature) != signer


@pytest.mark.parametrize("vector", VECTORS)
def test_the_high_s_twin_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidSignature, match="upper half"):
        typed_data.signer_of(unhex(vector["receiptDigest"]), unhex(vector["highS"]))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\x01" * 64,
        b"\x01" * 64 + b"\0",
        b"\x01" * 65 + b"\x1b",
        bytes(64) + b"\x1b",
        b"\xff" * 32 + bytes(32) + b"\x1c",
    ],
)
def test_malformed_signatures_are_refused(signature: bytes) -> None:
    with pytest.raises(InvalidSignature):
        typed_data.signer_of(b"\x01" * 32, signature)


@given(key=st.integers(1, 2**256 - 2**129), digest=st.binary(min_size=32, max_size=32))
def test_what_is_signed_is_recovered(key: int, digest: bytes) -> None:
    signature = typed_data.sign_digest(key.to_bytes(32, "big"), digest)
    assert len(signature) == 65
    typed_data.signer_of(digest, signature)  # strict: low s, v of 27 or 28


def test_seed_and_work_id_are_fixed() -> None:
    assert eip712.job_seed(bytes(32), bytes(32)) == 0xAD3228B676F7D3CD  # keccak of 64 zero bytes
    queue = VECTORS[0]["verifyingContract"]
    assert eip712.work_id(queue, 42) == struct(Receipt, VECTORS[0]["receipt"]).work_id


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**96 - 1),
    st.integers(0, 2**96 - 1),
    st.data(),
)
def test_the_fee_never_exceeds_the_escrow(
    max_in: int, max_out: int, in_price: int, out_price: int, data: st.DataObject
) -> None:
    spec = JobSpec(VECTORS[0]["signer"], 1, bytes(32), max_in, max_out, in_price, out_price, 0, 0, 0, 0)
    used = data.draw(st.tuples(st.integers(0, max_in), st.integers(0, max_out)))
    escrow = eip712.escrow_wei(spec)
    assert 0 <= eip712.fee_wei(spec, *used) <= escrow
    assert escrow - 1 <= eip712.fee_wei(spec, max_in, max_out)
