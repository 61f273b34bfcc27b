"""Which jobs are under way: new ones as the chain shows them, old ones after a restart, passed-over ones later."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Final

from openlora.node.errors import ChainError, JournalUnwritable
from openlora.node.job import Job, JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.tasks import task_group
from openlora.node.worker import Worker

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0  # until a job whose run met chain trouble is taken up again
RECONSIDER_S: Final = 10.0  # how often jobs that were passed over are looked at again

# A restart takes up the live ones first: they hold a bond.
WANTED: Final = (JobState.COMMITTING, JobState.CLAIMED, JobState.CLAIMING, JobState.SEEN)
PASSING: Final = frozenset(  # reasons that may pass while the deadline is ahead
    {
        SkipCode.TAKEN,
        SkipCode.ADAPTER_UNAVAILABLE,
        SkipCode.INPUT_UNAVAILABLE,
        SkipCode.LOW_DISK,
        SkipCode.LOW_GAS,
        SkipCode.NO_STAKE,
    }
)


@dataclass(slots=True)
class Dispatcher:
    """Keeps at most `max_live` jobs in `Worker.run_job`, each once. `wake` tells it that the journal has changed."""

    worker: Worker
    journal: Journal
    max_live: int
    _active: set[JobId] = field(default_factory=set)
    _not_before: dict[JobId, float] = field(default_factory=dict)  # job → monotonic seconds
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Dispatches until cancelled. Raises JournalError but for a full disk, which may pass."""
        next_reconsider_s = 0.0
        async with task_group() as group:
            while True:
                self._changed.clear()
                now_s = time.monotonic()
                wanted = [job for state in WANTED for job in self.journal.jobs(state)]
                if now_s >= next_reconsider_s:
                    wanted += self._passed_over()
                    next_reconsider_s = now_s + RECONSIDER_S
                for job in wanted:
                    if len(self._active) >= self.max_live:
                        break
                    if job.id not in self._active and self._not_before.get(job.id, 0.0) <= now_s:
                        self._active.add(job.id)
                        group.create_task(self._run(job.id), name=f"job-{job.id}")
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(RETRY_S):
                await self._changed.wait()
        except TimeoutError:
            pass  # time to look for retries

    async def _run(self, job_id: JobId) -> None:
        try:
            await self.worker.run_job(job_id)
            self._not_before.pop(job_id, None)
        except (ChainError, JournalUnwritable) as error:
            log.warning("event=job_waits job_id=%d reason=%r", job_id, str(error))
            self._not_before[job_id] = time.monotonic() + RETRY_S
        finally:
            self._active.discard(job_id)
            self.wake()

    def _passed_over(self) -> list[Job]:
        now_s = time.time()
        jobs = self.journal.jobs(JobState.SKIPPED, JobState.LOST)
        return [
            job for job in jobs if job.spec.deadline > now_s and (job.state is JobState.LOST or job.skip in PASSING)
        ]
