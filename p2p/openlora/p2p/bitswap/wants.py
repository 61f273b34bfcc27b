"""What this node wants, and of whom: the tables that fetches and sources share. No input or output happens here."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.content.cid import Cid
from openlora.p2p.network import PeerId

_REMEMBERED: Final = 2048  # CIDs that a peer was asked for lately


class Interested(Protocol):
    """A fetch: it knows peers that should have its blocks."""

    @property
    def sources(self) -> "dict[PeerId, Source]": ...


@dataclass(slots=True, eq=False)
class Want:
    """One block that somebody waits for. `failure` or `block` ends it; `changed` is replaced at each change."""

    cid: Cid
    fetches: "list[Interested]" = field(default_factory=list)
    asked: "dict[PeerId, float]" = field(default_factory=dict)  # when
    refused_by: set[PeerId] = field(default_factory=set)
    block: bytes | None = None
    failure: Exception | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def may_come_from(self, source: "Source") -> bool:
        return source.peer not in self.refused_by and any(source.peer in fetch.sources for fetch in self.fetches)


class Source:
    """One peer as a source of blocks: what it owes us, and how it has behaved. Times are trio's."""

    def __init__(self, peer: PeerId, limits: BitswapLimits) -> None:
        self.peer = peer
        self.owed: dict[Cid, Want] = {}
        self.cancels: list[Cid] = []
        self.probes: dict[Cid, Probe] = {}
        self.benched_until = 0.0
        self.round_trip_s = limits.window * limits.window_step_s
        self.last_block_at = 0.0
        self.broken_promises = 0
        self.wake = trio.Event()
        self.uses = 0  # fetches that count on it
        self._limits = limits
        self._asked_lately: OrderedDict[Cid, float] = OrderedDict()

    @property
    def usable(self) -> bool:
        return trio.current_time() >= self.benched_until

    @property
    def window(self) -> int:
        """Blocks to ask for at once. One block on a short path: what a crash loses is what was under way."""
        return min(self._limits.window, 1 + int(self.round_trip_s / self._limits.window_step_s))

    @property
    def busy(self) -> bool:
        return bool(self.uses or self.owed or self.probes or self.cancels)

    def owe(self, want: Want) -> None:
        """It is asked for the block now."""
        self.owed[want.cid] = want
        want.asked[self.peer] = trio.current_time()
        self.asked(want.cid)

    def delivered(self, want: Want) -> None:
        """It has brought the block, on time or not."""
        now = trio.current_time()
        asked_at = want.asked.pop(self.peer, None)
        if asked_at is not None:
            self.answered_after(now - asked_at)
        self.owed.pop(want.cid, None)
        self.last_block_at, self.broken_promises, self.benched_until = now, 0, 0.0
        self.wake.set()

    def answer_probe(self, cid: Cid, have: bool) -> None:
        probe = self.probes.get(cid)
        if probe is not None and not probe.answered.is_set():
            self.answered_after(trio.current_time() - probe.asked_at)
            probe.have = have
            probe.answered.set()

    def take_cancels(self, count: int) -> list[Cid]:
        taken, self.cancels = self.cancels[:count], self.cancels[count:]
        return taken

    def asked(self, cid: Cid) -> None:
        self._asked_lately[cid] = trio.current_time()
        self._asked_lately.move_to_end(cid)
        while len(self._asked_lately) > _REMEMBERED:
            self._asked_lately.popitem(last=False)

    def was_asked(self, cid: Cid) -> bool:
        """Lately: an answer may still come though nobody waits for it any more."""
        asked_at = self._asked_lately.get(cid)
        return asked_at is not None and trio.current_time() - asked_at < self._limits.asked_lately_s

    def was_asked_anything(self) -> bool:
        return bool(self._asked_lately) and self.was_asked(next(reversed(self._asked_lately)))

    def answered_after(self, seconds: float) -> None:
        self.round_trip_s = min(self.round_trip_s, seconds)

    def stalled(self, now: float) -> bool:
        """It owes us a block and has sent none for too long."""
        oldest = min((want.asked[self.peer] for want in self.owed.values()), default=now)
        return now - max(oldest, self.last_block_at) > self._limits.block_timeout_s


@dataclass(slots=True)
class Probe:
    """The question whether a peer has a block."""

    asked_at: float
    sent: bool = False
    answered: trio.Event = field(default_factory=trio.Event)
    have: bool = False


def choose(source: Source, wants: "dict[Cid, Want]", patience_s: float) -> list[Want]:
    """What to ask `source` for next, within its window: first what nobody owes us, then what is long overdue."""
    free = source.window - len(source.owed)
    if free <= 0 or not source.usable:
        return []
    possible = [want for want in wants.values() if source.peer not in want.asked and want.may_come_from(source)]
    fresh = [want for want in possible if not want.asked]
    if fresh or source.owed:
        return fresh[:free]
    overdue = trio.current_time() - patience_s
    return [want for want in possible if min(want.asked.values()) < overdue][:1]
