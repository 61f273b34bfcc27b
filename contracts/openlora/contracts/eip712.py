"""EIP-712 digests and the arithmetic that specs and receipts fix, as JobQueue computes them.

The committed vectors in contracts/test/vectors are checked here and in Solidity.
"""

from collections.abc import Sequence

from eth_abi.abi import encode
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts.bindings.job_queue import Answer, JobSpec, Receipt, Settlement
from openlora.contracts.bindings.node_registry import HotKeyConsent
from openlora.contracts.bindings.sessions import Line, Voucher
from openlora.typed_data import Domain, keccak, sign_digest, signer_of

TOKENS_PER_PRICE = 1_000

JOB_SPEC_TYPE = (
    "JobSpec(address client,uint64 recipeId,bytes32 inputDigest,uint32 maxInTokens,uint32 maxOutTokens,"
    "uint96 inPricePerK,uint96 outPricePerK,uint40 deadline,uint32 leaseSecs,uint32 flags,uint256 nonce)"
)
RECEIPT_TYPE = (
    "Receipt(bytes32 workId,address node,uint64 recipeId,bytes32 specHash,bytes32 inputDigest,bytes32 outputDigest,"
    "uint32 inTokens,uint32 outTokens,uint64 seed,bytes32 fingerprintRoot,bytes32 dataAttrRoot,uint16 engineProfile,"
    "uint8 finishReason,uint40 finishedAt,uint96 fee)"
)
VOUCHER_TYPE = "Voucher(bytes32 sessionId,uint96 cumulativeFee,bytes32 receiptsRoot,uint40 deadline)"
HOT_KEY_TYPE = "HotKey(address operator,uint40 deadline)"


def spec_digest(domain: Domain, spec: JobSpec) -> bytes:
    """In JobQueue's domain the specHash; in Sessions' the order's digest, which a client signs there."""
    return _digest(domain, JOB_SPEC_TYPE, encode([JobSpec.ABI], [spec.to_abi()]))


def receipt_digest(domain: Domain, receipt: Receipt) -> bytes:
    """The receiptHash: what the node's hot key signs, in the domain of the receipt's lane."""
    return _digest(domain, RECEIPT_TYPE, encode([Receipt.ABI], [receipt.to_abi()]))


def voucher_digest(domain: Domain, voucher: Voucher) -> bytes:
    """What a client signs to pay; Sessions' domain."""
    return _digest(domain, VOUCHER_TYPE, encode([Voucher.ABI], [voucher.to_abi()]))


def voucher_for(session_id: bytes, lines: Sequence[Line], deadline: int) -> Voucher:
    """The voucher that pays exactly `lines`, which ascend by recipe."""
    root = keccak(encode([f"{Line.ABI}[]"], [[line.to_abi() for line in lines]]))
    return Voucher(session_id, sum(line.cumulative_fee for line in lines), root, deadline)


def session_id(domain: Domain, client: ChecksumAddress, node: ChecksumAddress, nonce: int) -> bytes:
    """keccak256(abi.encode(chainId, Sessions, client, node, nonce)); Sessions' domain."""
    members = ["uint256", "address", "address", "address", "uint256"]
    return keccak(encode(members, [domain.chain_id, domain.verifying_contract, client, node, nonce]))


def hot_key_digest(domain: Domain, operator: ChecksumAddress, deadline: int) -> bytes:
    """What a hot key signs to agree, until `deadline`, that `operator` makes it its own; NodeRegistry's domain."""
    return _digest(domain, HOT_KEY_TYPE, encode(["address", "uint40"], [operator, deadline]))


def hot_key_consent(private_key: bytes, domain: Domain, operator: ChecksumAddress, deadline: int) -> HotKeyConsent:
    """What registering a hot key takes from it; `domain` is NodeRegistry's."""
    digest = hot_key_digest(domain, operator, deadline)
    signature = sign_digest(private_key, digest)
    return HotKeyConsent(to_checksum_address(signer_of(digest, signature)), deadline, signature)


def answer_of(receipt: Receipt) -> Answer:
    """The part of a receipt that a commit passes; spec and claim fix the rest."""
    return Answer(
        output_digest=receipt.output_digest,
        in_tokens=receipt.in_tokens,
        out_tokens=receipt.out_tokens,
        seed=receipt.seed,
        fingerprint_root=receipt.fingerprint_root,
        data_attr_root=receipt.data_attr_root,
        engine_profile=receipt.engine_profile,
        finish_reason=receipt.finish_reason,
        finished_at=receipt.finished_at,
    )


def settlement_of(spec: JobSpec, receipt: Receipt, receipt_hash: bytes) -> Settlement:
    """What finalizing a committed job takes, and what the queue stores the hash of."""
    return Settlement(
        receipt_hash=receipt_hash,
        client=spec.client,
        recipe_id=spec.recipe_id,
        fee=receipt.fee,
        refund=escrow_wei(spec) - receipt.fee,
    )


def work_id(queue: ChecksumAddress, job_id: int) -> bytes:
    """keccak256(abi.encode(queue, jobId)): names the work across the market's lanes."""
    return keccak(encode(["address", "uint64"], [queue, job_id]))


def job_seed(spec_hash: bytes, claim_block_hash: bytes) -> int:
    """Sampling seed of the queue lane: the first 8 bytes, big-endian, of keccak(specHash ‖ claim block hash)."""
    return int.from_bytes(keccak(spec_hash + claim_block_hash)[:8], "big")


def order_seed(order_digest: bytes) -> int:
    """Sampling seed of the signed lane: the first 8 bytes, big-endian, of the order's digest."""
    return int.from_bytes(order_digest[:8], "big")


def order_nonce(session: bytes, number: int) -> int:
    """The nonce that ties an order to its session (192 bits of its id), hence to one node, and numbers it there."""
    return int.from_bytes(session[:24], "big") << 64 | number


def order_number(session: bytes, nonce: int) -> int | None:
    """The number of the order with this nonce; None for one of another session."""
    return nonce & (1 << 64) - 1 if nonce >> 64 == int.from_bytes(session[:24], "big") else None


def escrow_wei(spec: JobSpec) -> int:
    """ceil((max_in·pᵢ + max_out·pₒ) / 1000)"""
    return -(-_weigh(spec, spec.max_in_tokens, spec.max_out_tokens) // TOKENS_PER_PRICE)


def fee_wei(spec: JobSpec, in_tokens: int, out_tokens: int) -> int:
    """floor((in·pᵢ + out·pₒ) / 1000); at most the escrow for counts within the spec's limits."""
    return _weigh(spec, in_tokens, out_tokens) // TOKENS_PER_PRICE


def _weigh(spec: JobSpec, in_tokens: int, out_tokens: int) -> int:
    return in_tokens * spec.in_price_per_k + out_tokens * spec.out_price_per_k


def _digest(domain: Domain, kind: str, members: bytes) -> bytes:
    return domain.digest(keccak(keccak(kind.encode()) + members))
