"""What dashboards hear as it happens: everything at first, then each change, to any number of listeners.

    everything   the first message: state, newest jobs, nodes, names; after a gap, connect again to have it anew
    state        the parts of the snapshot that changed
    jobs         jobs that changed
    network      nodes that changed, and those that are gone
    sample       the newest point of the graphs

A listener's messages carry numbers that rise by one, so it sees that it missed none. One look serves all listeners;
without any, nobody looks.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from openlora.node.errors import Overloaded
from openlora.node.network.table import NodeView
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.changed_jobs import ChangedJobs
from openlora.node.telemetry.history import Sample
from openlora.node.telemetry.snapshot import Part, Snapshot
from openlora.node.telemetry.views import JobView

LOOK_EVERY_S: Final = 0.4  # with the way to the browser, a change is on the page within a second
MAX_LISTENERS: Final = 64
MAX_WAITING: Final = 128  # messages that a listener may be behind; more, and it is dropped
FIRST_JOBS: Final = 50
MAX_NODES: Final = 256  # of the feed; /v1/network has more
NAMED_SLOTS: Final = 8  # adapters of each node whose names are told
SEEN_EVERY_S: Final = 20  # how often a node is told again of which only the time of its record has changed


class Event(Part, frozen=True, tag_field="type", tag=str.lower):
    """Root of all events."""

    at_s: float


class Everything(Event, frozen=True):
    state: Snapshot
    jobs: tuple[JobView, ...]  # newest first
    nodes: tuple[NodeView, ...]
    names: dict[str, str]  # adapters' digests → registered names


class State(Event, frozen=True):
    """`changed`: keys of the snapshot, with their new values; `names` only those that it newly needs."""

    changed: dict[str, Any]
    names: dict[str, str]


class Jobs(Event, frozen=True):
    jobs: tuple[JobView, ...]


class Network(Event, frozen=True):
    """`gone`: operators whose presence has ended."""

    nodes: tuple[NodeView, ...]
    gone: tuple[str, ...]
    names: dict[str, str]


class Moment(Event, frozen=True, tag="sample"):
    sample: Sample


EVENTS: Final = (Everything, State, Jobs, Network, Moment)


@dataclass(eq=False, slots=True)
class Listener:
    """One connection's messages, as JSON. `dropped` is set once it was too slow."""

    messages: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    def put(self, event: bytes) -> None:
        """`event`: a JSON object, to which its number is added. A full queue drops the listener, never a message."""
        self.sent += 1
        try:
            self.messages.put_nowait(b'{"sequence_number":%d,' % self.sent + event[1:])
        except asyncio.QueueFull:
            self.dropped.set()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look saw."""

    state: Snapshot
    nodes: Mapping[str, NodeView]  # by operator
    sample: Sample | None


@dataclass(slots=True)
class Feed:
    """Owns the listeners and what they were told last."""

    board: Board
    look_every_s: float = LOOK_EVERY_S
    clock: Callable[[], float] = time.time
    _listeners: set[Listener] = field(default_factory=set)
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: Seen | None = None
    _jobs: ChangedJobs | None = None
    _names: dict[str, str] = field(default_factory=dict)  # told to everybody

    async def run(self) -> None:
        """Looks while anybody listens, until cancelled."""
        while True:
            await self._wanted.wait()
            await self.look()
            await asyncio.sleep(self.look_every_s)

    @contextmanager
    def listener(self) -> Iterator[Listener]:
        """Hears from now on. Raises Overloaded when too many do already."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise Overloaded("rate_limit_exceeded", f"{MAX_LISTENERS} dashboards listen already; close one.")
        listener = Listener()
        self._listeners.add(listener)
        self._wanted.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._wanted.clear()
                self._seen = self._jobs = None
                self._names.clear()

    async def look(self) -> None:
        """Tells those who know everything the news, and the others everything."""
        state = await self.board.observe()
        now = self._see(state)  # from here on nothing waits, so nothing happens between what is seen and what is told
        self._jobs = self._jobs or ChangedJobs(self.board.journal.changed_since, self.clock())
        news = [] if self._seen is None else [msgspec.json.encode(event) for event in self._news(self._seen, now)]
        self._seen = now
        if any(listener.sent == 0 for listener in self._listeners):
            everything = msgspec.json.encode(self._everything(now))
        for listener in self._listeners:
            for message in news if listener.sent else [everything]:
                listener.put(message)

    def _see(self, state: Snapshot) -> Seen:
        nodes = self.board.network().nodes[:MAX_NODES]
        samples = self.board.history.samples
        return Seen(state, {node.operator: node for node in nodes}, samples[-1] if samples else None)

    def _everything(self, now: Seen) -> Everything:
        self._new_names(now.state, now.nodes.values())
        return Everything(
            at_s=self.clock(),
            state=now.state,
            jobs=self.board.jobs(FIRST_JOBS).jobs,
            nodes=tuple(now.nodes.values()),
            names=dict(self._names),
        )

    def _news(self, before: Seen, now: Seen) -> Iterator[Event]:
        assert self._jobs is not None, "there is a look before"
        at_s = self.clock()
        changed = {
            name: part
            for name in Snapshot.__struct_fields__
            if (part := getattr(now.state, name)) != getattr(before.state, name)
        }
        if changed:
            yield State(at_s=at_s, changed=changed, names=self._new_names(now.state, ()))
        if jobs := self._jobs.next():
            yield Jobs(at_s=at_s, jobs=tuple(map(self.board.job_view, jobs)))
        nodes = [view for name, view in now.nodes.items() if _told(view) != _told(before.nodes.get(name))]
        gone = before.nodes.keys() - now.nodes.keys()
        if nodes or gone:
            names = self._new_names(now.state, nodes)
            yield Network(at_s=at_s, nodes=tuple(nodes), gone=tuple(sorted(gone)), names=names)
        if now.sample is not None and now.sample != before.sample:
            yield Moment(at_s=at_s, sample=now.sample)

    def _new_names(self, state: Snapshot, nodes: Iterable[NodeView]) -> dict[str, str]:
        """Registered names of adapters that are shown and were not told yet."""
        digests = {*state.adapters.slots.digests, *state.adapters.disk.digests}
        digests.update(digest for node in nodes for digest in node.adapters.slots.digests[:NAMED_SLOTS])
        found = {digest: self.board.name_of(digest) for digest in digests - self._names.keys()}
        new = {digest: name for digest, name in found.items() if name is not None}
        self._names |= new
        return new


def _told(node: NodeView | None) -> NodeView | None:
    """What of a node is worth telling: its record is renewed all the time."""
    if node is None:
        return None
    return msgspec.structs.replace(node, sequence=0, expires_at=0, issued_at=node.issued_at // SEEN_EVERY_S)
