"""EIP-712 digests and their secp256k1 signatures, without a library for ABIs.

Apart from `openlora.contracts`, whose bindings cost a tenth of a second to import: the network process, many of which
may start at once, checks signatures and calls no contract.
"""

from dataclasses import dataclass
from functools import lru_cache

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak as _keccak

NAME = "OpenLoRA"
VERSION = "1"
DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"

# Checked by nodes alone, never by a contract: what ties a libp2p peer (its binary id) to the keys that contracts know.
NODE_PEER_TYPE = "NodePeer(address operator,bytes peerId)"
WATCH_JOB_TYPE = "WatchJob(uint256 jobId,bytes peerId)"
WATCH_SESSION_TYPE = "WatchSession(bytes32 sessionId,bytes peerId)"
TELEMETRY_BIRTH_TYPE = "TelemetryBirth(address operator,bytes32 session,uint256 startedAt)"

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # of secp256k1


class InvalidSignature(ValueError):
    """Not 65 bytes r ‖ s ‖ v with a low s and v of 27 or 28, or of no key at all."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Where a signature counts: one chain, one contract (JobQueue; NodeRegistry for NodePeer)."""

    chain_id: int
    verifying_contract: str

    def separator(self) -> bytes:
        return _separator(self)

    def digest(self, struct_hash: bytes) -> bytes:
        """What is signed of a struct with this hash: keccak256(0x19 ‖ 0x01 ‖ separator ‖ struct hash)."""
        return keccak(b"\x19\x01" + self.separator() + struct_hash)


def keccak(data: bytes) -> bytes:
    """keccak256, 32 bytes."""
    return _keccak.new(digest_bits=256, data=data).digest()


def word(value: int | str) -> bytes:
    """An unsigned integer, or an address in hexadecimal of any case, as abi.encode writes it: 32 bytes."""
    if isinstance(value, int):
        return value.to_bytes(32, "big")
    return bytes.fromhex(value.removeprefix("0x")).rjust(32, b"\0")


def node_peer_digest(domain: Domain, operator: str, peer_id: bytes) -> bytes:
    """What an operator's hot key signs to say that this peer is the operator's node; NodeRegistry's domain."""
    return domain.digest(keccak(keccak(NODE_PEER_TYPE.encode()) + word(operator) + keccak(peer_id)))


def watch_job_digest(domain: Domain, job_id: int, peer_id: bytes) -> bytes:
    """What a job's client signs to have its answer streamed to this peer; JobQueue's domain."""
    return domain.digest(keccak(keccak(WATCH_JOB_TYPE.encode()) + word(job_id) + keccak(peer_id)))


def watch_session_digest(domain: Domain, session_id: bytes, peer_id: bytes) -> bytes:
    """What a session's client signs to have this peer told how the session stands; Sessions' domain."""
    return domain.digest(keccak(keccak(WATCH_SESSION_TYPE.encode()) + session_id + keccak(peer_id)))


def telemetry_birth_digest(domain: Domain, operator: str, session: bytes, started_at_s: int) -> bytes:
    """What a hot key signs to say that a session (32 bytes) speaks for its operator; NodeRegistry's domain."""
    return domain.digest(keccak(keccak(TELEMETRY_BIRTH_TYPE.encode()) + word(operator) + session + word(started_at_s)))


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """r ‖ s ‖ v, 65 bytes: deterministic (RFC 6979), low s, v 27 or 28."""
    signature = PrivateKey(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def signer_of(digest: bytes, signature: bytes) -> str:
    """The signer's address in lower case, as strict as the contract; raises InvalidSignature."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise InvalidSignature("a signature is 65 bytes that end in 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise InvalidSignature("the signature's s is in the upper half: its twin with the low s is the valid one")
    recoverable = signature[:64] + bytes([signature[64] - 27])
    try:
        key = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except ValueError as error:
        raise InvalidSignature("the signature belongs to no key") from error
    return "0x" + keccak(key.format(compressed=False)[1:])[12:].hex()


@lru_cache(maxsize=64)
def _separator(domain: Domain) -> bytes:
    """A process uses a handful, each in every digest."""
    constants = (keccak(text.encode()) for text in (DOMAIN_TYPE, NAME, VERSION))
    return keccak(b"".join(constants) + word(domain.chain_id) + word(domain.verifying_contract))
