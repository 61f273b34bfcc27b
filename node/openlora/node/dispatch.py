"""Which jobs are under way: new ones as the chain shows them, old ones after a restart, passed-over ones later."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from openlora.node.errors import ChainError, JournalUnwritable, OpenLoraError
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.tasks import task_group
from openlora.node.turns import NotYet
from openlora.node.worker import Worker

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0  # until a job whose run met chain trouble is taken up again
RECONSIDER_S: Final = 10.0  # how often jobs that were passed over are looked at again
MAX_SECOND_LOOKS: Final = 1_000

# A restart takes up the live ones first: they hold a bond.
WANTED: Final = (JobState.COMMITTING, JobState.CLAIMED, JobState.CLAIMING, JobState.SEEN)
PASSING: Final = frozenset(  # reasons that may pass while the deadline is ahead
    {
        SkipCode.TAKEN,
        SkipCode.ADAPTER_UNAVAILABLE,
        SkipCode.INPUT_UNAVAILABLE,
        SkipCode.NOT_PERMITTED,
        SkipCode.LOW_DISK,
        SkipCode.LOW_GAS,
        SkipCode.NO_STAKE,
        SkipCode.BREAKER_OPEN,
        SkipCode.DRAINING,
    }
)
BY_TERMS: Final = frozenset({SkipCode.PRICE_TOO_LOW, SkipCode.CLIENT_NOT_ALLOWED, SkipCode.ADAPTER_NOT_ALLOWED})


@dataclass(slots=True)
class Dispatcher:
    """Keeps at most `max_live()` jobs in `Worker.run_job`, each once. `wake` tells it that the journal has changed."""

    worker: Worker
    journal: Journal
    max_live: Callable[[], int]  # asked anew each time
    lease_ends_at_s: Callable[[JobId], float | None] = lambda _: None  # of a live claim, whoever holds it
    chain_s: Callable[[], float] = time.time  # the chain's time, which deadlines and leases are in
    retry_s: float = RETRY_S
    reconsider_s: float = RECONSIDER_S
    _active: set[JobId] = field(default_factory=set)
    _not_before: dict[JobId, float] = field(default_factory=dict)  # job → monotonic seconds
    _again: deque[JobId] = field(default_factory=deque)  # passed over, to be looked at once more
    _look_again_at_s: float = 0.0
    _second_looks: frozenset[SkipCode] = PASSING
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def active(self) -> int:
        """Jobs under way."""
        return len(self._active)

    def wake(self) -> None:
        self._changed.set()

    def look_again(self, job_id: JobId) -> None:
        """A job that was passed over is looked at once more, at once: its client has brought what it lacked."""
        self._again.appendleft(job_id)
        self.wake()

    def terms_changed(self) -> None:
        """What the old terms passed over is looked at once more, at once."""
        self._second_looks, self._look_again_at_s = PASSING | BY_TERMS, 0.0
        self._again.clear()
        self.wake()

    async def run(self) -> None:
        """Dispatches until cancelled. Raises JournalError but for a full disk, which may pass."""
        async with task_group() as group:
            while True:
                self._changed.clear()
                while len(self._active) < self.max_live() and (job_id := self._next()) is not None:
                    self._active.add(job_id)
                    group.create_task(self._run(job_id), name=f"job-{job_id}")
                with suppress(TimeoutError):  # then it is time to look for retries
                    async with asyncio.timeout(self._patience_s()):
                        await self._changed.wait()

    def _patience_s(self) -> float:
        """Until the first retry or turn is due."""
        now_s = time.monotonic()
        due = (at_s - now_s for at_s in self._not_before.values() if at_s > now_s)
        return min(self.retry_s, self.reconsider_s, *due)

    def _next(self) -> JobId | None:
        """A job that is not under way and may be: live and new ones first, then the passed-over ones in turn."""
        now_s = time.monotonic()
        for state in WANTED:
            for job_id in self.journal.ids(state):
                if job_id not in self._active and self._not_before.get(job_id, 0.0) <= now_s:
                    return job_id
        if not self._again and now_s >= self._look_again_at_s:
            self._again.extend(self._passed_over())
            self._second_looks = PASSING
            self._look_again_at_s = now_s + self.reconsider_s
        while self._again:
            if (job_id := self._again.popleft()) not in self._active:
                return job_id
        return None

    async def _run(self, job_id: JobId) -> None:
        try:
            await self.worker.run_job(job_id)
            self._not_before.pop(job_id, None)
        except NotYet as later:
            self._not_before[job_id] = time.monotonic() + later.wait_s
        except (ChainError, JournalUnwritable) as error:
            log.warning("event=job_waits job_id=%d reason=%r", job_id, str(error))
            self._not_before[job_id] = time.monotonic() + self.retry_s
        except OpenLoraError:
            raise
        except Exception:  # else one job would end this node, and each start after
            log.exception("event=job_error job_id=%d", job_id)
            self._not_before[job_id] = float("inf")
        finally:
            self._active.discard(job_id)
            self.wake()

    def _passed_over(self) -> list[JobId]:
        """Jobs whose reason may have passed, newest first; not those under somebody's lease."""
        now_s = self.chain_s()
        jobs = self.journal.jobs(JobState.SKIPPED, JobState.LOST, limit=MAX_SECOND_LOOKS, newest_first=True)
        hopeful = (job for job in jobs if job.state is JobState.LOST or job.skip in self._second_looks)
        return [job.id for job in hopeful if job.spec.deadline > now_s > (self.lease_ends_at_s(job.id) or 0)]
