"""Committed jobs brought to their end: each is finalized soon after its window, whoever else may do it first."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from openlora.node.chain.client import ChainClient
from openlora.node.errors import ChainError, GasTooDear, JournalUnwritable, Reverted, RpcDown
from openlora.node.facts import HELD, ChainFacts
from openlora.node.job import Job, JobId, JobState
from openlora.node.settlement import Settlement
from openlora.node.supervise import Backoff

log = logging.getLogger(__name__)

MAX_BATCH: Final = 32


@dataclass(slots=True)
class Finalizer:
    """`run` looks every `poll_s` until cancelled, after trouble with growing pauses. That delays a payment and loses
    none."""

    settlement: Settlement
    chain: ChainClient
    facts: ChainFacts
    poll_s: float
    _window_ends: dict[JobId, float] = field(default_factory=dict)  # of committed jobs, as last read
    _attempt: int = 1
    _most: int = MAX_BATCH  # jobs of the next transaction

    async def run(self) -> None:
        """Raises JournalError but for a full disk, which may pass."""
        pauses = Backoff(first_s=self.poll_s)
        while True:
            try:
                well = await self._finalize(await self._due())
            except (ChainError, JournalUnwritable) as error:
                well = False
                log.warning("event=settlement_waits reason=%r", str(error))
            if well:
                pauses = Backoff(first_s=self.poll_s)
            await asyncio.sleep(self.poll_s if well else pauses.after(0))

    async def _finalize(self, due: Sequence[Job]) -> bool:
        """Finalizes batch by batch; returns whether all went well. A batch that is refused holds up no other one, and
        makes those after it smaller, since jobs of recipes with many payees may together take more gas than a block
        has. Raises what would stop every batch."""
        well = True
        while due:
            batch, due = due[: self._most], due[self._most :]
            try:
                await self.settlement.finalize(batch, self._attempt)
                if len(batch) == self._most:
                    self._most = min(2 * self._most, MAX_BATCH)
            except (GasTooDear, RpcDown, JournalUnwritable):
                raise
            except Reverted as error:
                well, self._attempt, self._most = False, self._attempt + 1, max(1, self._most // 2)
                log.error("event=finalization_reverted attempt=%d reason=%r", self._attempt, str(error))
            except ChainError as error:
                well, self._most = False, max(1, self._most // 2)
                log.warning("event=settlement_waits reason=%r", str(error))
        return well

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
