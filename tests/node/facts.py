"""Chain facts for tests: specs, receipts and events that fit together, and a journal to apply them to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eth_utils.address import to_checksum_address

from openlora.contracts import (
    JobCancelled,
    JobClaimed,
    JobCommitted,
    JobExpired,
    JobFinalized,
    JobReleased,
    JobSpec,
    JobSubmitted,
    LeaseLapsed,
    Receipt,
)
from openlora.node.job import BlockRef
from openlora.node.journal import Identity, Journal

OPERATOR = to_checksum_address("0x" + "0a" * 20)
RIVAL = to_checksum_address("0x" + "0b" * 20)
CLIENT = to_checksum_address("0x" + "0c" * 20)
IDENTITY = Identity(31337, {"job_queue": "0x" + "0d" * 20}, "0x" + "0e" * 20)


def block(number: int) -> BlockRef:
    return BlockRef(number, number.to_bytes(32, "big"))


def spec(**changes: Any) -> JobSpec:
    plain = JobSpec(
        client=CLIENT,
        recipe_id=1,
        input_digest=bytes(32),
        max_in_tokens=100,
        max_out_tokens=50,
        in_price_per_k=10,
        out_price_per_k=30,
        deadline=4_000_000_000,
        lease_secs=60,
        flags=0,
        nonce=1,
    )
    return replace(plain, **changes)


def spec_hash(job_id: int) -> bytes:
    return b"\xaa" + job_id.to_bytes(31, "big")


def submitted(job_id: int, **changes: Any) -> JobSubmitted:
    return JobSubmitted(
        job_id=job_id,
        client=CLIENT,
        spec_hash=spec_hash(job_id),
        spec=spec(**changes),
        document=b'{"v":1,"prompt":"a"}',
    )


def claimed(job_id: int, node: str = OPERATOR) -> JobClaimed:
    return JobClaimed(job_id=job_id, node=to_checksum_address(node), lease_deadline=2_000_000_000, params_version=1)


def receipt(job_id: int, node: str = OPERATOR) -> Receipt:
    return Receipt(
        work_id=bytes(32),
        node=to_checksum_address(node),
        recipe_id=1,
        spec_hash=spec_hash(job_id),
        input_digest=bytes(32),
        output_digest=b"\x05" * 32,
        in_tokens=7,
        out_tokens=9,
        seed=1,
        fingerprint_root=bytes(32),
        data_attr_root=bytes(32),
        engine_profile=1,
        finish_reason=0,
        finished_at=1,
        fee=0,
    )


def committed(job_id: int, node: str = OPERATOR) -> JobCommitted:
    return JobCommitted(
        job_id=job_id, node=to_checksum_address(node), receipt_hash=b"\x0f" * 32, receipt=receipt(job_id, node)
    )


def finalized(job_id: int, node: str = OPERATOR, fee: int = 3, refund: int = 0) -> JobFinalized:
    return JobFinalized(job_id=job_id, node=to_checksum_address(node), fee=fee, refund=refund)


def released(job_id: int, node: str = OPERATOR) -> JobReleased:
    return JobReleased(job_id=job_id, node=to_checksum_address(node), lost=1)


def lapsed(job_id: int, node: str = OPERATOR) -> LeaseLapsed:
    return LeaseLapsed(job_id=job_id, node=to_checksum_address(node), bond=1)


def cancelled(job_id: int, refund: int = 0) -> JobCancelled:
    return JobCancelled(job_id=job_id, refund=refund)


def expired(job_id: int, refund: int = 0) -> JobExpired:
    return JobExpired(job_id=job_id, refund=refund)


def open_journal(folder: Path) -> Journal:
    return Journal(folder, IDENTITY)
