"""Our own record: when it is told again, and what it says."""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from openlora.p2p.network import Network, PeerId
from openlora.p2p.presence.record import MAX_LIFETIME_S, Presence, Status, encode
from openlora.p2p.presence.sequence import SequenceCounter

_log = logging.getLogger(__name__)

_FAREWELL_S: Final = 2  # life of the last record


@dataclass(frozen=True, slots=True)
class Membership:
    """Whose node this is. `binding` is the hot key's signature over operator and peer id."""

    operator: str  # lower-case address
    hot_key: str  # lower-case address
    binding: bytes


@dataclass(frozen=True, slots=True)
class Pace:
    """Well inside what a PresenceBook lets an operator send, so that no honest record is ever refused."""

    every_s: float = 20.0  # give or take a tenth; two may be lost before a record expires
    settle_s: float = 0.3  # changes that come together are told together
    between_s: float = 4.0  # records, on average, where changes hasten them …
    burst: int = 3  # … and at once
    small_bytes: int = 2048  # a record of thrice this size is told a third as often


_PACE: Final = Pace()


class Announcer:
    """Makes a signed record of every status that matters, and of the last one every 20 s. Says nothing until it knows
    both whose node this is and its status."""

    def __init__(
        self,
        network: Network,
        chain_id: int,
        sequence: SequenceCounter,
        clock: Callable[[], float] = time.time,
        pace: Pace = _PACE,
    ) -> None:
        self.current: bytes | None = None  # our live record, as it was last told
        self._network = network
        self._chain_id = chain_id
        self._sequence = sequence
        self._clock = clock
        self._born_at = clock()
        self._pace = pace
        self._membership: Membership | None = None
        self._status: Status | None = None
        self._told: tuple[Membership, Status] | None = None
        self._changed = trio.Event()

    def made(self, record: Presence) -> bool:
        """Whether a record that names this node's peer was made in this life or an earlier one; if not, another process
        has this node's key."""
        if record.sequence in self._sequence.given:
            return True
        return record.sequence < self._sequence.given.start and record.issued_at <= self._born_at

    def join(self, membership: Membership) -> None:
        """From now on this is `membership`'s node."""
        self._membership = membership
        self._look()

    def announce(self, status: Status) -> None:
        """From now on this is the node's status. Told within a second if it differs in a way that others act on."""
        self._status = status
        self._look()

    def repeat(self) -> None:
        """Tells the present status anew, soon: others may not have heard it."""
        self._changed.set()

    def farewell(self) -> bytes | None:
        """A record that expires at once; None if there never was another. Raises OSError as SequenceCounter does."""
        return self._make(_FAREWELL_S) if self.current is not None else None

    async def run(self, publish: Callable[[bytes], Awaitable[bool]]) -> None:
        """Until cancelled. `publish` returns whether anybody can have heard. While no sequence number can be made
        durable, nothing is told, and tried again."""
        allowance, counted_at = float(self._pace.burst), trio.current_time()
        while True:
            self._changed = trio.Event()
            if (data := self._try_to_make()) is not None:
                self.current = data
                if await publish(data):
                    allowance -= max(1.0, len(data) / self._pace.small_bytes)
            await self._wait()
            now = trio.current_time()
            allowance = min(self._pace.burst, allowance + (now - counted_at) / self._pace.between_s)
            counted_at = now
            if allowance < 1:
                await trio.sleep((1 - allowance) * self._pace.between_s)

    async def _wait(self) -> None:
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - so that nodes started together do not speak together
        with trio.move_on_after(self._pace.every_s * jitter):
            await self._changed.wait()
            await trio.sleep(self._pace.settle_s)

    def _look(self) -> None:
        if self._membership is None or self._status is None:
            return
        if self._told is None or self._told[0] != self._membership or matters(self._told[1], self._status):
            self._changed.set()

    def _try_to_make(self) -> bytes | None:
        try:
            return self._make(MAX_LIFETIME_S)
        except OSError as error:
            _log.warning("event=presence_waits reason=%r", str(error))
            return None

    def _make(self, lifetime_s: int) -> bytes | None:
        if self._membership is None or self._status is None:
            return None
        self._told = (self._membership, self._status)
        now = int(self._clock())
        presence = Presence(
            v=1,
            chain_id=self._chain_id,
            operator=self._membership.operator,
            hot_key=self._membership.hot_key,
            binding=self._membership.binding,
            peer=self._network.peer_id,
            sequence=self._sequence.next(),
            issued_at=now,
            expires_at=now + lifetime_s,
            addresses=_tellable(self._network.addresses, self._network.peer_id),
            status=self._status,
        )
        return encode(presence, self._network.sign)


def matters(told: Status, now: Status) -> bool:
    """Whether others would decide differently: anything but a few jobs more or less, and the disk's contents.

    The queue matters when it begins or ends, or moves by a quarter of what can run at once."""
    before, after = told.load, now.load
    step = max(1, now.load.capacity // 4)
    return (
        (told.models, told.ask, told.hardware) != (now.models, now.ask, now.hardware)
        or set(told.adapters.slots.digests()) != set(now.adapters.slots.digests())
        or before.capacity != after.capacity
        or (before.running < before.capacity) != (after.running < after.capacity)
        or abs(before.queued + before.running - after.queued - after.running) >= step
    )


def _tellable(addresses: Sequence[str], peer: PeerId) -> tuple[str, ...]:
    """The first eight that a record may carry."""
    return tuple(text for text in addresses if len(text) <= 128 and text.endswith(f"/p2p/{peer}"))[:8]
