"""Presence over a network: records by gossip, tables by exchange, our own record again and again.

Gossip carries what is new. What was said before a node came, or while it was cut off, it gets by exchange: it asks
each peer that connects, and one peer at random from time to time, for the records that it lacks. Whoever is asked and
sees that the asker knows more asks back. An exchange that brings news says that gossip does not reach us, and the next
one follows at once: so a node that gossip leaves out, as gossipsub's mesh may, still hears and is heard.
"""

import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from hashlib import sha256
from itertools import chain, islice
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from openlora.p2p import rpc
from openlora.p2p.errors import GossipRefused, PeerUnreachable, StreamLost, StreamRefused
from openlora.p2p.network import Network, PeerId
from openlora.p2p.presence.announcer import Announcer
from openlora.p2p.presence.book import FAULTS, PresenceBook
from openlora.p2p.presence.changes import Changes
from openlora.p2p.presence.record import MAX_RECORD_BYTES, Presence

PROTOCOL: Final = "/openlora/1/presence"
_TAG_BYTES: Final = 8  # of a record's signature: enough to tell records apart, and a liar hides only its own
_MAX_KNOWN: Final = 16_000
_LIMITS: Final = rpc.RpcLimits(request_bytes=_MAX_KNOWN * _TAG_BYTES + 64, reply_bytes=MAX_RECORD_BYTES)
_MAX_EXCHANGED: Final = 4096
_MAX_ASKERS: Final = 1024  # whose last exchange is remembered

_TICK_S: Final = 1.0  # records expire, and exchanges start, at most this late
_EAGER_ROUNDS: Final = 5  # ticks with `_EAGER_PEERS` exchanges each after a start and after `resync`,
_EAGER_PEERS: Final = 3  # one after an exchange that brought news …
_EXCHANGE_EVERY_S: Final = 15.0  # … and then one in this time
_GRAFT_S: Final = 1.5  # until a new connection carries gossip
_FEW: Final = 4  # connections: a node with no more was out of gossip's reach a moment ago
_ANSWER_EVERY_S: Final = 0.5  # how often one peer may ask …
_ANSWER_BYTES_S: Final = 64 << 10  # … and what it gets on average
_SILENCE_S: Final = 5.0  # for each step of an exchange …
_EXCHANGE_S: Final = 20.0  # … and for all of it


class Wanted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Asks for the live records of a chain but for those whose signatures begin with one of `known`."""

    chain_id: int
    known: Annotated[bytes, Meta(max_length=_MAX_KNOWN * _TAG_BYTES)]


def topic(chain_id: int) -> str:
    return f"/openlora/1/{chain_id}/presence"


class PresenceService:
    """Keeps `book` by the network and, where there is an `announcer`, the network told of this node.

    One that only watches has no announcer. `run` once; everything else may be called before and while it runs."""

    MAX_REPLIES: Final = 1024  # records of one exchange

    def __init__(self, network: Network, book: PresenceBook, announcer: Announcer | None = None) -> None:
        self._network = network
        self._book = book
        self._announcer = announcer
        self._topic = topic(book.chain_id)
        self._changes: list[Changes] = []
        self._eager = _EAGER_ROUNDS
        self._ask_again: OrderedDict[PeerId, float] = OrderedDict()  # when each peer may
        self._exchanged: OrderedDict[bytes, bool] = OrderedDict()  # records that gossip has not brought as well
        self._know_more: set[PeerId] = set()  # peers that told us of records we lack, since the last tick
        self._exchanges = trio.CapacityLimiter(4)
        book.on_change(self._tell)

    async def run(self) -> None:
        """Until cancelled."""
        rpc.serve(self._network, PROTOCOL, self._answer, _LIMITS)
        self._network.subscribe(self._topic, self._hear)
        self._network.on_connect(self._greet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            if self._announcer is not None:
                nursery.start_soon(self._announcer.run, self._publish)

    def changes(self) -> Changes:
        """Every change of the table from now on, and first the table as it is."""
        changes = Changes()
        for record in self._book.live():
            changes.put(record.operator, record)
        self._changes.append(changes)
        return changes

    def resync(self) -> None:
        """For when `authorise` has learnt something: those it now refuses go, those it refused before are asked for."""
        self._book.reauthorise()
        self._eager = _EAGER_ROUNDS

    async def farewell(self) -> None:
        """Tells the network that this node goes, which it would else notice when the last record expires."""
        if self._announcer is not None and (last := self._announcer.farewell()) is not None:
            await self._publish(last)

    async def _publish(self, data: bytes) -> bool:
        """False if nobody was there to hear it."""
        await self._network.publish(self._topic, data)
        return bool(self._network.connected())

    # ---- what others say --------------------------------------------------------------------------------------------

    def _hear(self, peer: PeerId, data: bytes) -> None:
        """One record by gossip. Raises GossipRefused, so that it goes no further.

        One that an exchange brought before is passed on once all the same: else those who ask a lot would be where
        gossip ends."""
        try:
            self._take(peer, data)
        except GossipRefused as refusal:
            if refusal.code != "replayed" or not self._exchanged.pop(sha256(data).digest(), False):
                raise

    def _take(self, peer: PeerId, data: bytes) -> None:
        """One record, passed on by `peer`, who answers for what no honest node passes on. Raises GossipRefused."""
        try:
            self._book.accept(data)
        except GossipRefused as refusal:
            if refusal.code in FAULTS:
                self._network.penalise(peer, refusal.code)
            raise

    def _tell(self, operator: str, record: Presence | None) -> None:
        for changes in self._changes:
            changes.put(operator, record)

    async def _keep(self) -> None:
        """Forgets the expired and asks around."""
        next_exchange = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(_TICK_S)
                self._book.expire()
                connected = self._network.connected()
                peers = list(self._know_more & connected)[:_EAGER_PEERS]
                self._know_more.clear()
                if self._eager > 0 or trio.current_time() >= next_exchange:
                    count = _EAGER_PEERS if self._eager > 1 else 1
                    peers += random.sample(sorted(connected), min(len(connected), count))
                    self._eager = max(0, self._eager - 1)
                    next_exchange = trio.current_time() + _EXCHANGE_EVERY_S
                for peer in set(peers):
                    nursery.start_soon(self._exchange, peer)

    async def _greet(self, peer: PeerId) -> None:
        """A new connection: gives us the other's table, and gossip a way for what we said when nobody listened."""
        await self._exchange(peer)
        if self._announcer is not None and len(self._network.connected()) <= _FEW:
            await trio.sleep(_GRAFT_S)
            self._announcer.repeat()

    # ---- exchange ---------------------------------------------------------------------------------------------------

    async def _exchange(self, peer: PeerId) -> None:
        """Takes the records that `peer` has and we have not. It does not matter if it has no mind to."""
        async with self._exchanges:
            known = [data[:_TAG_BYTES] for data in islice(self._records(), _MAX_KNOWN)]
            request = msgspec.msgpack.encode(Wanted(self._book.chain_id, b"".join(known)))
            with trio.move_on_after(_EXCHANGE_S), suppress(PeerUnreachable, StreamLost):
                async with aclosing(
                    rpc.ask(self._network, peer, PROTOCOL, request, timeout_s=_SILENCE_S, limits=_LIMITS)
                ) as replies:
                    await self._take_all(peer, replies)

    async def _take_all(self, peer: PeerId, replies: AsyncIterator[bytes]) -> None:
        taken = 0
        async for data in replies:
            await trio.lowlevel.checkpoint()  # a full buffer must not keep others from running
            try:
                self._take(peer, data)
            except GossipRefused as refusal:
                if refusal.code in FAULTS:
                    return
            else:
                self._eager = max(self._eager, 1)
                self._exchanged[sha256(data).digest()] = True
                if len(self._exchanged) > _MAX_EXCHANGED:
                    self._exchanged.popitem(last=False)
            taken += 1
            if taken >= self.MAX_REPLIES:
                return

    async def _answer(self, peer: PeerId, request: bytes) -> AsyncIterator[bytes]:
        now = trio.current_time()
        if now < self._ask_again.get(peer, now):
            raise StreamRefused("asked again too soon")
        known = self._read_request(peer, request)
        records = list(self._records())
        if known - {data[:_TAG_BYTES] for data in records}:
            self._know_more.add(peer)
        records = [data for data in records if data[:_TAG_BYTES] not in known][: self.MAX_REPLIES]
        cost_s = sum(map(len, records)) / _ANSWER_BYTES_S
        self._ask_again[peer] = now + max(_ANSWER_EVERY_S, cost_s)
        self._ask_again.move_to_end(peer)
        if len(self._ask_again) > _MAX_ASKERS:
            self._ask_again.popitem(last=False)
        for data in records:
            yield data

    def _read_request(self, peer: PeerId, request: bytes) -> frozenset[bytes]:
        """The tags of what the peer knows. Raises StreamRefused."""
        try:
            wanted = msgspec.msgpack.decode(request, type=Wanted)
        except msgspec.MsgspecError:
            self._network.penalise(peer, "presence: malformed request")
            raise StreamRefused("not a request for presence records") from None
        if wanted.chain_id != self._book.chain_id:
            raise StreamRefused(f"this node is on chain {self._book.chain_id}")
        known = wanted.known
        return frozenset(known[at : at + _TAG_BYTES] for at in range(0, len(known), _TAG_BYTES))

    def _records(self) -> Iterator[bytes]:
        """All we know: our own, then the others', the last heard of first."""
        own = self._announcer.current if self._announcer is not None else None
        return chain([own] if own is not None else [], self._book.newest())
