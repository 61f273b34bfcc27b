"""Committed jobs brought to their end: each is finalized soon after its window, whoever else may do it first."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from openlora.node.chain.client import ChainClient
from openlora.node.errors import ChainError, JournalUnwritable, Reverted
from openlora.node.facts import HELD, ChainFacts
from openlora.node.job import Job, JobId, JobState
from openlora.node.settlement import Settlement

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Finalizer:
    """`run` looks every `poll_s` until cancelled. Trouble with the chain delays a payment and loses none."""

    settlement: Settlement
    chain: ChainClient
    facts: ChainFacts
    poll_s: float
    _window_ends: dict[JobId, float] = field(default_factory=dict)  # of committed jobs, as last read
    _attempt: int = 1

    async def run(self) -> None:
        """Raises JournalError but for a full disk, which may pass."""
        while True:
            try:
                await self.settlement.finalize(await self._due(), self._attempt)
            except Reverted as error:
                self._attempt += 1
                log.error("event=finalization_reverted attempt=%d reason=%r", self._attempt, str(error))
            except (ChainError, JournalUnwritable) as error:
                log.warning("event=settlement_waits reason=%r", str(error))
            await asyncio.sleep(self.poll_s)

    async def _due(self) -> Sequence[Job]:
        """The committed jobs whose windows are over. A question moves a window's end, so an end is read again when it
        should have come, and of a job that is held at every look."""
        committed = self.settlement.journal.ids(JobState.COMMITTED)
        if not committed:
            return ()
        now_s = (await self.chain.block("latest")).timestamp
        waits = {job_id: end for job_id in committed if now_s < (end := self._window_ends.get(job_id, HELD)) < HELD}
        read = {job_id: await self.facts.finalizable_at(job_id) for job_id in committed if job_id not in waits}
        self._window_ends = waits | read
        return [self.settlement.journal.job(job_id) for job_id in committed if self._window_ends[job_id] <= now_s]
