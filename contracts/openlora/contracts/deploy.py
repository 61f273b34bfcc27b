"""How the market is deployed, as data: creation transactions in order, and the addresses they will have.

The contracts name each other in immutable fields, so no wiring call follows and nobody can rewire them later. Circular
references are resolved by predicting CREATE addresses from the deployer's nonces. Should a foreign transaction take
one of these nonces, a constructor finds that the vault does not know it and reverts: a deployment fails, it never lies.
"""

import json
from dataclasses import asdict, dataclass, fields

from eth_abi.abi import encode
from eth_typing import ChecksumAddress
from eth_utils.address import is_checksum_address, to_canonical_address, to_checksum_address
from eth_utils.crypto import keccak

from openlora.contracts.artifact import load_artifact
from openlora.contracts.bindings.disputes import DisputeTerms
from openlora.contracts.bindings.job_queue import Params
from openlora.contracts.bindings.outputs import OutputTerms

MAX_FAULTS = 3  # of a file, that are named: another kind of file has dozens


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """`owner` may set parameters, `timelock_s` after it announced them; `guardian` may pause at once; `treasury`
    receives the protocol's part."""

    owner: ChecksumAddress
    guardian: ChecksumAddress
    treasury: ChecksumAddress
    params: Params
    timelock_s: int
    close_delay_s: int  # of a session whose client leaves it: the node settles its last voucher meanwhile
    unstake_delay_s: int  # longer than the challenge window, and than a dispute's life
    output_terms: OutputTerms
    dispute_terms: DisputeTerms
    token: ChecksumAddress | None = None  # None: deploy a DevToken, which anyone may mint


@dataclass(frozen=True, slots=True)
class DeploymentStep:
    """One creation transaction: `data` with no recipient, sent with exactly `nonce`, creates `name` at `address`."""

    name: str
    nonce: int
    data: bytes
    address: ChecksumAddress


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where a market lives. `block` is at or before its first event: followers start there."""

    chain_id: int
    block: int
    token: ChecksumAddress
    vault: ChecksumAddress
    node_registry: ChecksumAddress
    adapter_registry: ChecksumAddress
    job_queue: ChecksumAddress
    sessions: ChecksumAddress
    outputs: ChecksumAddress
    disputes: ChecksumAddress
    governance: ChecksumAddress

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Deployment":
        """Strict: exactly these keys, positive integers, checksummed addresses; else ValueError with some faults."""
        document = json.loads(text)
        names = [field.name for field in fields(cls)]
        if not isinstance(document, dict):
            raise ValueError(f"a deployment is an object with the keys {', '.join(names)}")
        faults = [f"{key}: unknown key" for key in document if key not in names]
        for name in names:
            value = document.get(name)
            if name not in document:
                faults.append(f"{name}: missing")
            elif name in ("chain_id", "block"):
                if type(value) is not int or value < 0:
                    faults.append(f"{name}: not a non-negative integer")
            elif not is_checksum_address(value):
                faults.append(f"{name}: not a checksummed address")
        if faults:
            more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
            raise ValueError("; ".join(faults[:MAX_FAULTS]) + more)
        return cls(**document)


def create_address(deployer: ChecksumAddress, nonce: int) -> ChecksumAddress:
    """CREATE's address: the last 20 bytes of keccak(rlp([deployer, nonce]))."""
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    encoded = number if len(number) == 1 and number[0] < 0x80 else bytes([0x80 + len(number)]) + number
    payload = b"\x94" + to_canonical_address(deployer) + encoded
    return to_checksum_address(keccak(bytes([0xC0 + len(payload)]) + payload)[12:])


def deployment_steps(deployer: ChecksumAddress, nonce: int, settings: MarketSettings) -> tuple[DeploymentStep, ...]:
    """The transactions that create the market, in order, from the deployer's next nonce on."""
    names = ["Vault", "AdapterRegistry", "NodeRegistry", "JobQueue", "Sessions", "Outputs", "Disputes", "Governance"]
    if settings.token is None:
        names.insert(0, "DevToken")
    at = {name: create_address(deployer, nonce + offset) for offset, name in enumerate(names)}
    arguments = {
        "DevToken": b"",
        "Vault": encode(
            ["address", "(address,address,address,address,address)"],
            [
                settings.token or at["DevToken"],
                tuple(at[name] for name in ("NodeRegistry", "JobQueue", "Sessions", "Outputs", "Disputes")),
            ],
        ),
        "AdapterRegistry": encode(["address"], [settings.treasury]),
        "NodeRegistry": encode(
            ["address", "address", "address", "address", "uint32"],
            [at["Vault"], at["JobQueue"], at["Outputs"], at["Disputes"], settings.unstake_delay_s],
        ),
        "JobQueue": encode(
            ["address", "address", "address", Params.ABI],
            [at["NodeRegistry"], at["AdapterRegistry"], at["Governance"], settings.params.to_abi()],
        ),
        "Sessions": encode(
            ["address", "address", "address", "uint32"],
            [at["NodeRegistry"], at["AdapterRegistry"], at["Governance"], settings.close_delay_s],
        ),
        "Outputs": encode(
            ["address", "address", "address", OutputTerms.ABI],
            [at["NodeRegistry"], at["JobQueue"], at["Governance"], settings.output_terms.to_abi()],
        ),
        "Disputes": encode(
            ["address", "address", "address", "address", DisputeTerms.ABI],
            [
                *(at[name] for name in ("NodeRegistry", "JobQueue", "Sessions", "Governance")),
                settings.dispute_terms.to_abi(),
            ],
        ),
        "Governance": encode(
            ["address", "address", "uint32", "address", "address"],
            [settings.owner, settings.guardian, settings.timelock_s, at["JobQueue"], at["Sessions"]],
        ),
    }
    return tuple(
        DeploymentStep(name, nonce + offset, load_artifact(name).bytecode + arguments[name], at[name])
        for offset, name in enumerate(names)
    )


def deployment_of(
    steps: tuple[DeploymentStep, ...], settings: MarketSettings, *, chain_id: int, block: int
) -> Deployment:
    """What `steps` create once all are mined; `block` is any block before the first of them."""
    at = {step.name: step.address for step in steps}
    return Deployment(
        chain_id=chain_id,
        block=block,
        token=settings.token or at["DevToken"],
        vault=at["Vault"],
        node_registry=at["NodeRegistry"],
        adapter_registry=at["AdapterRegistry"],
        job_queue=at["JobQueue"],
        sessions=at["Sessions"],
        outputs=at["Outputs"],
        disputes=at["Disputes"],
        governance=at["Governance"],
    )
