"""What the chain says of the demonstration's jobs, as it is said."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from openlora.contracts import (
    ForfeitPaid,
    JobCancelled,
    JobClaimed,
    JobCommitted,
    JobFinalized,
    JobHeld,
    JobReleased,
    JobResumed,
    LeaseLapsed,
)
from openlora.node.chain.client import ChainClient
from openlora.node.chain.history import market_events
from openlora.node.demo_jobs import ENDED, DemoJob, DemoView
from openlora.node.demo_nodes import DemoFailed
from openlora.node.devnet import OPERATORS, Devnet

FINISH_TIMEOUT_S: Final = 240.0
POLL_S: Final = 0.25


@dataclass(slots=True)
class DemoChain:
    """Keeps the jobs' states, and every event since the deployment."""

    net: Devnet
    chain: ChainClient
    jobs: Sequence[DemoJob]
    view: DemoView
    history: list[object] = field(default_factory=list)
    first_paid_at_s: float = 0.0  # by the monotonic clock
    tokens: int = 0
    requeued: int = 0
    _next_block: int = 0
    _committed: asyncio.Event = field(default_factory=asyncio.Event)
    _last_committed: int = 0

    async def follow(self) -> None:
        """Until all jobs have ended. Raises DemoFailed if that takes long."""
        deadline_s = time.monotonic() + FINISH_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for event in await self.read():
                self._apply(event)
            if all(job.state in ENDED for job in self.jobs):
                return
            await asyncio.sleep(POLL_S)
        unfinished = (job for job in self.jobs if job.state not in ENDED)
        stuck = ", ".join(f"{job.job.job_id if job.job else '?'} ({job.state})" for job in unfinished)
        logs = self.net.folder / "node-*" / "node.log"
        raise DemoFailed(f"the jobs did not end in {FINISH_TIMEOUT_S:.0f} s: {stuck}; see {logs}")

    async def read(self) -> Sequence[object]:
        """What the market's contracts said since the last call."""
        head = (await self.chain.block("latest")).number
        first = self._next_block or self.net.deployment.block
        new = await market_events(self.chain, self.net.deployment, first, head)
        self._next_block = head + 1
        self.history += new
        return new

    async def honest_job(self) -> int:
        """A job that a node has just committed. Raises DemoFailed when none is any more."""
        self._committed.clear()
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S / 2):
                await self._committed.wait()
        except TimeoutError:
            raise DemoFailed("no job was committed while its output could be demanded") from None
        return self._last_committed

    def show(self, job: DemoJob, state: str) -> None:
        if job.state != state:
            job.state = state
            self.view.changed(job)

    def _apply(self, event: object) -> None:
        match event:
            case JobClaimed():
                self._show(event.job_id, "running", self._node_name(event.node))
            case LeaseLapsed():
                self.requeued += 1
            case JobReleased():
                self._show(event.job_id, "queued", "")
            case JobCommitted():
                self.tokens += event.receipt.out_tokens
                self._show(event.job_id, "committed", self._node_name(event.node))
                if self.net.name_of(event.node) in OPERATORS:  # and not the cheat's
                    self._last_committed = event.job_id
                    self._committed.set()
            case JobHeld():
                self._show(event.job_id, "held")
            case JobResumed():
                self._show(event.job_id, "committed")
            case JobFinalized():
                self.first_paid_at_s = self.first_paid_at_s or time.monotonic()
                self._show(event.job_id, "paid")
            case JobCancelled():
                self._show(event.job_id, "cancelled")
            case ForfeitPaid():
                if (who := self.net.name_of(event.beneficiary)) in OPERATORS:
                    self.view.step(f"{who} is credited the bond that the killed node lost, but for a tenth")

    def _show(self, job_id: int, state: str, node: str | None = None) -> None:
        for demo_job in self.jobs:
            if demo_job.job is not None and demo_job.job.job_id == job_id:
                demo_job.node = demo_job.node if node is None else node
                self.show(demo_job, state)

    def _node_name(self, operator: str) -> str:
        """ "node-2" for operator 2."""
        return self.net.name_of(operator).replace("operator ", "node-")
