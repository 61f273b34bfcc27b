"""Jobs as the chain shows them to whoever submitted them: who has them, until when, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from eth_typing import ChecksumAddress

from openlora.contracts import Job, JobCommitted, JobSpec, JobState, JobSubmitted, Receipt, eip712
from openlora.node.chain.history import events, topic
from openlora.node.deeds import Desk
from openlora.node.errors import ChainError


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job as of `now_s`, the newest block's time."""

    job_id: int
    spec: JobSpec
    job: Job
    receipt: Receipt | None  # once it is committed
    now_s: int

    @property
    def state(self) -> str:
        """The chain's word, but "overdue" for an open job past its deadline, which nobody can claim any more."""
        overdue = self.job.state is JobState.OPEN and self.now_s > self.spec.deadline
        return "overdue" if overdue else self.job.state.name.lower()

    @property
    def node(self) -> ChecksumAddress | None:
        """The operator that holds or has answered it."""
        return self.job.node if int(self.job.node, 16) else None

    @property
    def escrow_wei(self) -> int:
        return eip712.escrow_wei(self.spec)

    @property
    def until_s(self) -> int | None:
        """When its state ends by itself: an open job's deadline, a claim's lease, a commit's window."""
        ends = {
            JobState.OPEN: self.spec.deadline,
            JobState.CLAIMED: self.job.lease_deadline,
            JobState.COMMITTED: self.job.finalizable_at,
        }
        return ends.get(self.job.state)


async def job_report(desk: Desk, job_id: int) -> JobReport:
    """Raises ChainError for a job that never was."""
    for report in await _reports(desk, job=topic(job_id)):
        return report
    raise ChainError(f"no job {job_id} was ever submitted here")


async def job_reports(desk: Desk) -> Sequence[JobReport]:
    """All that the desk's address ever submitted, oldest first. Raises ChainError."""
    return await _reports(desk, client=topic(desk.address))


async def _reports(desk: Desk, *, job: bytes | None = None, client: bytes | None = None) -> Sequence[JobReport]:
    chain, queue, first = desk.chain, desk.queue, desk.deployment.block
    submitted = await events(chain, queue.address, first, topics=(JobSubmitted.TOPIC, job, client))
    committed = await events(chain, queue.address, first, topics=(JobCommitted.TOPIC, job))
    receipts = {event.job_id: event.receipt for event in committed if isinstance(event, JobCommitted)}
    now_s = (await chain.block("latest")).timestamp
    return [
        JobReport(
            event.job_id, event.spec, await chain.call(queue.job(event.job_id)), receipts.get(event.job_id), now_s
        )
        for event in submitted
        if isinstance(event, JobSubmitted)
    ]
