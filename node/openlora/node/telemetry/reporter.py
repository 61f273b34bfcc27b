"""Turns snapshots into messages: each topic when what it tells has changed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from openlora.node.job import Job
from openlora.node.telemetry.changed_jobs import ChangedJobs
from openlora.node.telemetry.outbox import Outbox, Waiting
from openlora.node.telemetry.snapshot import Snapshot
from openlora.node.telemetry.topics import (
    AdaptersMessage,
    AlertsMessage,
    EarningsMessage,
    GpuMessage,
    JobMessage,
    JobPart,
    Message,
    Place,
    StateMessage,
)

LOOK_EVERY_S: Final = 0.4  # with the way to the broker, a change is out within a second


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Fills the outbox. It remembers what it told, so that `repeat` can tell a broker that has forgotten it."""

    place: Place
    outbox: Outbox
    observe: Callable[[], Awaitable[Snapshot]]
    jobs_changed_since: Callable[[float, int], Sequence[Job]]
    look_every_s: float = LOOK_EVERY_S
    clock: Callable[[], float] = time.time
    _told: dict[str, Waiting] = field(default_factory=dict)  # topic → what is retained there
    _changed_jobs: ChangedJobs = field(init=False)

    def __post_init__(self) -> None:
        self._changed_jobs = ChangedJobs(self.jobs_changed_since, 0.0)

    async def run(self) -> None:
        """Looks until cancelled."""
        self._changed_jobs.since_s = self.clock()
        while True:
            self.report(await self.observe())
            self.report_jobs()
            await asyncio.sleep(self.look_every_s)

    def report(self, state: Snapshot) -> None:
        """Puts what differs from what was told before."""
        self._tell("state", StateMessage, online=True, state=state)
        self._tell("adapters", AdaptersMessage, adapters=state.adapters)
        self._tell("earnings", EarningsMessage, earnings=state.earnings)
        self._tell("alerts", AlertsMessage, alerts=state.alerts)
        for gpu in state.machine.gpus:
            self._tell(f"gpu/{gpu.index}", GpuMessage, gpu=gpu)

    def report_jobs(self) -> None:
        """Puts each job that changed since the last look."""
        for job in self._changed_jobs.next():
            topic = self.place.topic(f"jobs/{job.id}")
            self.outbox.put(Waiting(topic, JobMessage, {"job": JobPart.of(job), "at_s": job.changed_at}, False))

    def repeat(self) -> None:
        """Puts everything that is retained once more: the broker may have lost it, or published the last will."""
        for message in self._told.values():
            self.outbox.put(message)

    def _tell(self, name: str, kind: type[Message], **fields: Any) -> None:
        topic = self.place.topic(name)
        told = self._told.get(topic)
        if told is None or any(told.fields[key] != value for key, value in fields.items()):
            self._told[topic] = message = Waiting(topic, kind, {**fields, "at_s": self.clock()}, True)
            self.outbox.put(message)
