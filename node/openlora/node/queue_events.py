"""What the queue's events mean for this node: applied in order, each with its block, in the follower's transaction."""

import logging
from collections.abc import Collection

import msgspec

from openlora.contracts import (
    JobAnnulled,
    JobCancelled,
    JobClaimed,
    JobCommitted,
    JobExpired,
    JobFinalized,
    JobReleased,
    JobSlashed,
    JobSubmitted,
    LeaseLapsed,
    Paid,
)
from openlora.node.job import HELD, BlockRef, Job, JobId, JobState, SkipCode
from openlora.node.journal import Journal

log = logging.getLogger(__name__)

OF_JOBS = (
    *(JobAnnulled, JobCancelled, JobClaimed, JobCommitted, JobExpired, JobFinalized, JobReleased, JobSlashed),
    LeaseLapsed,
)
UNDECIDED = (JobState.SEEN, JobState.SKIPPED)


class QueueEvents:
    """Moves jobs in the journal as the chain says. A fact that the journal knows already changes nothing.

    What happens to a job whose submission an RPC kept back is passed over: it is not ours, for we claim what we know.
    A journal that was lost is rebuilt from the same events: the chain tells which claims were ours, and a commit's
    event carries the whole receipt.
    """

    def __init__(self, journal: Journal, operator: str) -> None:
        self._journal = journal
        self._operator = operator

    def apply(self, event: object, block: BlockRef) -> None:
        """Records one event of `block`; other contracts' and other nodes' are passed over where they do not matter.

        Raises JournalError when the journal says that this cannot have happened, RpcBehind when an RPC contradicts
        itself.
        """
        if isinstance(event, OF_JOBS) and self._journal.find(JobId(event.job_id)) is None:
            log.error("event=job_unknown job_id=%d told_of=%s", event.job_id, type(event).__name__)
            return
        match event:
            case JobSubmitted():
                document = event.document or None
                self._journal.see(JobId(event.job_id), event.spec, event.spec_hash, document, block)
            case JobClaimed(node=self._operator):
                self._claimed(self._journal.job(JobId(event.job_id)), block)
            case JobClaimed():
                self._taken(self._journal.job(JobId(event.job_id)), block)
            case LeaseLapsed(node=self._operator):
                self._move(event.job_id, JobState.LOST, block, among=HELD)
            case JobReleased(node=self._operator):
                self._released(self._journal.job(JobId(event.job_id)), block)
            case JobCommitted(node=self._operator):
                self._committed(event, block)
            case JobCommitted():
                self._answered(self._journal.job(JobId(event.job_id)), block)
            case JobFinalized(node=self._operator):
                self._move(event.job_id, JobState.FINALIZED, block)
            case Paid(payee=self._operator):
                self._journal.record_payment(event.role.name.lower(), event.amount, block)
            case JobCancelled():
                self._move(event.job_id, JobState.CANCELLED, block)
            case JobSlashed(node=self._operator):
                self._move(event.job_id, JobState.SLASHED, block)
            case JobAnnulled(node=self._operator):
                self._move(event.job_id, JobState.ANNULLED, block)
            case JobExpired():
                self._move(event.job_id, JobState.EXPIRED, block)

    def _claimed(self, job: Job, block: BlockRef) -> None:
        """Ours since this block; where a reorganisation moved the claim, that is another block than before, and another
        seed. A receipt that is fixed by then stays the only one: the queue tells whether it takes it."""
        known = job.state is JobState.CLAIMED and job.claim == block
        if not known and job.state not in (JobState.COMMITTING, JobState.FAILED):
            self._journal.move(job.id, JobState.CLAIMED, block=block)

    def _taken(self, job: Job, block: BlockRef) -> None:
        """Somebody else holds it for now."""
        if job.state in UNDECIDED:
            self._journal.move(job.id, JobState.SKIPPED, block=block, skip=SkipCode.TAKEN)
        elif job.state is not JobState.LOST:
            self._move(job.id, JobState.LOST, block, among=(JobState.CLAIMING, *HELD))

    def _answered(self, job: Job, block: BlockRef) -> None:
        """Somebody else has: nobody need look at it again."""
        if job.state in UNDECIDED:
            self._journal.move(job.id, JobState.SKIPPED, block=block, skip=SkipCode.ANSWERED)

    def _released(self, job: Job, block: BlockRef) -> None:
        """Given back because it could not be answered; the worker, if it still runs, knows better why."""
        if job.state in HELD:
            self._journal.move(job.id, JobState.FAILED, block=block, reason="given back")

    def _committed(self, event: JobCommitted, block: BlockRef) -> None:
        job_id = JobId(event.job_id)
        if self._journal.signed(job_id) is None:  # an earlier life of this node signed it
            self._journal.record_receipt(job_id, event.receipt_hash, msgspec.json.encode(event.receipt))
        self._move(job_id, JobState.COMMITTED, block)

    def _move(self, job_id: int, to: JobState, block: BlockRef, among: Collection[JobState] = tuple(JobState)) -> None:
        job = self._journal.job(JobId(job_id))
        if job.state is not to and job.state in among:
            self._journal.move(job.id, to, block=block)
