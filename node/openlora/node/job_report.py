"""Jobs as the chain shows them to whoever submitted them: who has them, until when, and what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eth_typing import ChecksumAddress

from openlora.contracts import Job, JobCommitted, JobSpec, JobState, JobSubmitted, Receipt, eip712
from openlora.node.chain.history import events
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


async def job_reports(desk: Desk, wanted: Callable[[JobSubmitted], bool]) -> Sequence[JobReport]:
    """The jobs whose submission is `wanted`, oldest first. Raises ChainError."""
    found: list[JobSubmitted] = []
    receipts: dict[int, Receipt] = {}
    for event in await events(desk.chain, desk.queue.address, desk.deployment.block):
        match event:
            case JobSubmitted() if wanted(event):
                found.append(event)
            case JobCommitted():
                receipts[event.job_id] = event.receipt
    now_s = (await desk.chain.block("latest")).timestamp
    return [
        JobReport(
            event.job_id,
            event.spec,
            await desk.chain.call(desk.queue.job(event.job_id)),
            receipts.get(event.job_id),
            now_s,
        )
        for event in found
    ]


async def job_report(desk: Desk, job_id: int) -> JobReport:
    """Raises ChainError for a job that never was."""
    for report in await job_reports(desk, lambda event: event.job_id == job_id):
        return report
    raise ChainError(f"no job {job_id} was ever submitted here")
