"""The table of who is there: one live presence record an operator, each checked before it is believed.

Records are self-certifying: it does not matter who passed one on. What is refused is refused by name, counted, and
costs as little as the fault allows: the checks that need no arithmetic come first, the signature last.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from openlora.p2p.errors import GossipRefused
from openlora.p2p.network import PeerId
from openlora.p2p.presence.record import MAX_LIFETIME_S, Presence, check_signature, decode

MAX_SKEW_S: Final = 10  # that an honest node's clock may be ahead of ours
FAULTS: Final = frozenset({"oversize", "malformed", "wrong_chain", "expires_too_late", "forged", "binding_forged"})
"""Codes of what an honest node never passes on. The others depend on when, and with which view of the chain, one
looks."""


@dataclass(frozen=True, slots=True)
class BookLimits:
    records: int = 10_000
    record_bytes: int = 16 << 20  # of all records, as they came; decoded they take about as much again
    remembered: int = 20_000  # operators whose last sequence number is known after their record is gone
    interval_s: float = 2.0  # an operator's records, on average …
    burst: int = 5  # … and at once


@dataclass(frozen=True, slots=True)
class _Entry:
    record: Presence
    data: bytes


@dataclass(slots=True)
class _Past:
    """What was accepted of an operator."""

    sequence: int
    allowance: float  # records that may come now
    counted_at: float


_DEFAULTS: Final = BookLimits()


class PresenceBook:
    """Live records by operator. `authorise` raises GossipRefused (unstaked, binding_forged) for a record whose operator
    does not stand behind its peer; it must be cheap for what it has seen before. `own` is this node's peer, whose
    records others need not tell us, but for those that it has not `made`."""

    def __init__(
        self,
        chain_id: int,
        authorise: Callable[[Presence], None],
        clock: Callable[[], float] = time.time,
        *,
        own: PeerId | None = None,
        made: Callable[[Presence], bool] = lambda record: True,
        limits: BookLimits = _DEFAULTS,
    ) -> None:
        self.refused: Final[Counter[str]] = Counter()
        self.chain_id = chain_id
        self._authorise = authorise
        self._clock = clock
        self._own, self._made = own, made
        self._limits = limits
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the longest unheard of first
        self._past: OrderedDict[str, _Past] = OrderedDict()
        self._bytes = 0
        self._tell: Callable[[str, Presence | None], None] | None = None

    def on_change(self, tell: Callable[[str, Presence | None], None]) -> None:
        """`tell` hears of every operator whose record has come (the record) or gone (None), as it happens."""
        self._tell = tell

    def __len__(self) -> int:
        return len(self._entries)

    def accept(self, data: bytes) -> Presence:
        """Puts a record in the table, in the place of the operator's last. Raises GossipRefused with one of the codes

        oversize, malformed, wrong_chain, expires_too_late (over 60 s after it was issued), from_the_future, expired,
        own, replayed (its sequence is not above the operator's last), rate_limited, those of `authorise`, forged."""
        try:
            return self._accept(data)
        except GossipRefused as refusal:
            self.refused[refusal.code] += 1
            raise

    def get(self, operator: str) -> Presence | None:
        """The live record of an operator (lower-case address)."""
        entry = self._entries.get(operator)
        return entry.record if entry is not None and entry.record.expires_at > self._clock() else None

    def live(self) -> Sequence[Presence]:
        now = self._clock()
        return [entry.record for entry in self._entries.values() if entry.record.expires_at > now]

    def newest(self) -> Iterator[bytes]:
        """Live records as they came, the last heard of first. The table may not change between two of them."""
        now = self._clock()
        return (entry.data for entry in reversed(self._entries.values()) if entry.record.expires_at > now)

    def expire(self) -> None:
        """Forgets what has expired."""
        now = self._clock()
        for operator in [key for key, entry in self._entries.items() if entry.record.expires_at <= now]:
            self._remove(operator)

    def reauthorise(self) -> None:
        """Forgets those whom `authorise` now refuses: for when what it knows has changed."""
        for operator, entry in list(self._entries.items()):
            try:
                self._authorise(entry.record)
            except GossipRefused:
                self._remove(operator)

    def _accept(self, data: bytes) -> Presence:
        record, now = decode(data), self._clock()
        self._check_claims(record, now)
        allowance = self._check_history(record, now)
        self._authorise(record)
        check_signature(record, data)
        self._remember(record, allowance - 1, now)
        self._store(_Entry(record, data))
        return record

    def _check_claims(self, record: Presence, now: float) -> None:
        if record.chain_id != self.chain_id:
            raise GossipRefused("wrong_chain", f"a record for chain {record.chain_id}, not {self.chain_id}")
        if record.expires_at > record.issued_at + MAX_LIFETIME_S:
            raise GossipRefused("expires_too_late", f"a record that would live longer than {MAX_LIFETIME_S} s")
        if record.issued_at > now + MAX_SKEW_S:
            raise GossipRefused("from_the_future", f"a record issued {record.issued_at - now:.0f} s from now")
        if record.expires_at <= now:
            raise GossipRefused("expired", f"a record that expired {now - record.expires_at:.0f} s ago")
        if record.peer == self._own and self._made(record):
            raise GossipRefused("own", "a record of this node itself")

    def _check_history(self, record: Presence, now: float) -> float:
        """How many records the operator may send now. It is charged only for what it has signed."""
        past = self._past.get(record.operator)
        if past is None:
            return self._limits.burst
        if record.sequence <= past.sequence:
            raise GossipRefused("replayed", f"record {record.sequence} of {record.operator} is not above the last")
        earned = max(0.0, now - past.counted_at) / self._limits.interval_s
        allowance = min(self._limits.burst, past.allowance + earned)
        if allowance < 1:
            interval_s = self._limits.interval_s
            raise GossipRefused("rate_limited", f"{record.operator} sends more than one record in {interval_s:g} s")
        return allowance

    def _remember(self, record: Presence, allowance: float, now: float) -> None:
        self._past[record.operator] = _Past(record.sequence, allowance, now)
        self._past.move_to_end(record.operator)
        if len(self._past) > self._limits.remembered:
            self._past.popitem(last=False)

    def _store(self, entry: _Entry) -> None:
        operator = entry.record.operator
        replaced = self._entries.pop(operator, None)
        self._bytes += len(entry.data) - (len(replaced.data) if replaced else 0)
        self._entries[operator] = entry
        self._changed(operator, entry.record)
        while len(self._entries) > self._limits.records or self._bytes > self._limits.record_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, operator: str) -> None:
        self._bytes -= len(self._entries.pop(operator).data)
        self._changed(operator, None)

    def _changed(self, operator: str, record: Presence | None) -> None:
        if self._tell is not None:
            self._tell(operator, record)
