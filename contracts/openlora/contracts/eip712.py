"""EIP-712 digests, signatures and the arithmetic that specs and receipts fix, as JobQueue computes them.

The committed vectors in contracts/test/vectors are checked here and in Solidity. NodePeer and WatchJob are checked by
nodes alone, never by a contract: they tie a libp2p peer to the keys that the contracts know.
"""

from dataclasses import dataclass
from functools import lru_cache

from eth_abi.abi import encode
from eth_keys.datatypes import PrivateKey, Signature
from eth_keys.exceptions import BadSignature
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from openlora.contracts.bindings.job_queue import JobSpec, Receipt

NAME = "OpenLoRA"
VERSION = "1"
TOKENS_PER_PRICE = 1_000

DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
JOB_SPEC_TYPE = (
    "JobSpec(address client,uint64 recipeId,bytes32 inputDigest,uint32 maxInTokens,uint32 maxOutTokens,"
    "uint96 inPricePerK,uint96 outPricePerK,uint40 deadline,uint32 leaseSecs,uint32 flags,uint256 nonce)"
)
RECEIPT_TYPE = (
    "Receipt(bytes32 workId,address node,uint64 recipeId,bytes32 specHash,bytes32 inputDigest,bytes32 outputDigest,"
    "uint32 inTokens,uint32 outTokens,uint64 seed,bytes32 fingerprintRoot,bytes32 dataAttrRoot,uint16 engineProfile,"
    "uint8 finishReason,uint40 finishedAt,uint96 fee)"
)
NODE_PEER_TYPE = "NodePeer(address operator,bytes peerId)"
WATCH_JOB_TYPE = "WatchJob(uint256 jobId,bytes peerId)"

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # of secp256k1


class InvalidSignature(ValueError):
    """Not 65 bytes r ‖ s ‖ v with a low s and v of 27 or 28, or of no key at all."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Where a signature counts: one chain, one contract (JobQueue; NodeRegistry for NodePeer)."""

    chain_id: int
    verifying_contract: ChecksumAddress

    def separator(self) -> bytes:
        return _separator(self)


def spec_digest(domain: Domain, spec: JobSpec) -> bytes:
    """The specHash: what the queue stores and what a client signs on the session lane."""
    return _digest(domain, keccak(encode(["bytes32", JobSpec.ABI], [keccak(text=JOB_SPEC_TYPE), spec.to_abi()])))


def receipt_digest(domain: Domain, receipt: Receipt) -> bytes:
    """The receiptHash: what the node's hot key signs."""
    return _digest(domain, keccak(encode(["bytes32", Receipt.ABI], [keccak(text=RECEIPT_TYPE), receipt.to_abi()])))


def node_peer_digest(domain: Domain, operator: str, peer_id: bytes) -> bytes:
    """What an operator's hot key signs to say that this libp2p peer (its binary id) is the operator's node.

    `domain` is NodeRegistry's. The address may be in any case: peers check many of these, and a checksum costs."""
    members = ["bytes32", "address", "bytes32"]
    return _digest(domain, keccak(encode(members, [keccak(text=NODE_PEER_TYPE), operator, keccak(peer_id)])))


def watch_job_digest(domain: Domain, job_id: int, peer_id: bytes) -> bytes:
    """What a job's client signs to have its answer streamed to this libp2p peer (its binary id); JobQueue's domain."""
    members = ["bytes32", "uint256", "bytes32"]
    return _digest(domain, keccak(encode(members, [keccak(text=WATCH_JOB_TYPE), job_id, keccak(peer_id)])))


def sign_digest(private_key: bytes, digest: bytes) -> bytes:
    """r ‖ s ‖ v, 65 bytes: deterministic (RFC 6979), low s, v 27 or 28."""
    signature: bytes = PrivateKey(private_key).sign_msg_hash(digest).to_bytes()
    return signature[:64] + bytes([27 + signature[64]])


def recover(digest: bytes, signature: bytes) -> ChecksumAddress:
    """The signer's address, as strict as the contract; raises InvalidSignature."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise InvalidSignature("a signature is 65 bytes that end in 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise InvalidSignature("the signature's s is in the upper half: its twin with the low s is the valid one")
    try:
        parsed = Signature(signature[:64] + bytes([signature[64] - 27]))
        return parsed.recover_public_key_from_msg_hash(digest).to_checksum_address()
    except (BadSignature, ValidationError) as error:
        raise InvalidSignature("the signature belongs to no key") from error


def work_id(queue: ChecksumAddress, job_id: int) -> bytes:
    """keccak256(abi.encode(queue, jobId)): names the work across the market's lanes."""
    return keccak(encode(["address", "uint64"], [queue, job_id]))


def job_seed(spec_hash: bytes, claim_block_hash: bytes) -> int:
    """Sampling seed of the queue lane: the first 8 bytes, big-endian, of keccak(specHash ‖ claim block hash)."""
    return int.from_bytes(keccak(spec_hash + claim_block_hash)[:8], "big")


def escrow_wei(spec: JobSpec) -> int:
    """ceil((max_in·pᵢ + max_out·pₒ) / 1000)"""
    return -(-_weigh(spec, spec.max_in_tokens, spec.max_out_tokens) // TOKENS_PER_PRICE)


def fee_wei(spec: JobSpec, in_tokens: int, out_tokens: int) -> int:
    """floor((in·pᵢ + out·pₒ) / 1000); at most the escrow for counts within the spec's limits."""
    return _weigh(spec, in_tokens, out_tokens) // TOKENS_PER_PRICE


def _weigh(spec: JobSpec, in_tokens: int, out_tokens: int) -> int:
    return in_tokens * spec.in_price_per_k + out_tokens * spec.out_price_per_k


@lru_cache(maxsize=64)
def _separator(domain: Domain) -> bytes:
    """Takes longer than all the rest of a digest, and a process uses a handful."""
    members = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    constants = [keccak(text=DOMAIN_TYPE), keccak(text=NAME), keccak(text=VERSION)]
    return keccak(encode(members, [*constants, domain.chain_id, domain.verifying_contract]))


def _digest(domain: Domain, struct_hash: bytes) -> bytes:
    return keccak(b"\x19\x01" + domain.separator() + struct_hash)
