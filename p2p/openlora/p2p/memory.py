"""Whole networks inside one process: the same contract as the real one, and links that can be stalled and cut.

Streams are two bounded pipes; gossip floods along links that exist; the DHT is one dictionary. Peer ids are real keys,
made from the peers' names, so that a run repeats exactly.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import TracebackType
from typing import Final, Self, TypeVar

import trio

from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import GossipRefused, PeerUnreachable, StreamLost
from openlora.p2p.identity import Identity
from openlora.p2p.limits import Limits, Refusals, Strikes
from openlora.p2p.network import Handler, PeerId, Stream, Validator

_log = logging.getLogger(__name__)

_WINDOW_BYTES: Final = 256 * 1024
Argument = TypeVar("Argument")


class MemoryHub:
    """The world that memory networks live in: `async with MemoryHub() as hub: a = hub.network("a")`.

    Leaving it cancels every task of every network."""

    def __init__(self, *, window_bytes: int = _WINDOW_BYTES, limits: Limits | None = None) -> None:
        self.window_bytes: Final = window_bytes
        self.limits: Final = limits or Limits()
        self._nurseries = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self._links: dict[frozenset[PeerId], _Link] = {}
        self._providers: dict[Cid, dict[PeerId, None]] = {}

    async def __aenter__(self) -> Self:
        self._nursery = await self._nurseries.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self._nurseries.__aexit__(kind, error, traceback)

    @property
    def nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("enter the hub first")
        return self._nursery

    def network(self, name: str) -> "MemoryNetwork":
        """A new peer, connected to nobody. Its identity follows from `name`."""
        network = MemoryNetwork(self, name)
        self._networks[network.peer_id] = network
        return network

    def stall(self, a: "MemoryNetwork", b: "MemoryNetwork", *, stalled: bool = True) -> None:
        """From now on (or, with `stalled=False`, no longer) nothing that either says reaches the other; both wait."""
        self._link(a.peer_id, b.peer_id).set_stalled(stalled)

    def lose(self, a: "MemoryNetwork", b: "MemoryNetwork", *, lost: bool = True) -> None:
        """Gossip between the two is dropped from now on; streams are not."""
        self._link(a.peer_id, b.peer_id).loses_gossip = lost

    def cut(self, a: "MemoryNetwork", b: "MemoryNetwork", *, forbidden: bool = False) -> None:
        """Ends the connection and every stream of it; `forbidden` keeps either from dialling the other again."""
        link = self._link(a.peer_id, b.peer_id)
        link.cut()
        link.forbidden = forbidden

    def kill(self, network: "MemoryNetwork") -> None:
        """The peer is gone without a word."""
        for link in self.links_of(network.peer_id):
            link.cut()
        self._networks.pop(network.peer_id, None)
        for providers in self._providers.values():
            providers.pop(network.peer_id, None)

    def links_of(self, peer: PeerId) -> "list[_Link]":
        return [link for ends, link in self._links.items() if peer in ends and link.up]

    def link_between(self, a: PeerId, b: PeerId) -> "_Link":
        """The link of two living peers, dialled if it is down. Raises PeerUnreachable."""
        if a == b or a not in self._networks or b not in self._networks:
            raise PeerUnreachable(f"no peer {b}")
        link = self._link(a, b)
        if link.forbidden or self._networks[b].shuns(a) or self._networks[a].shuns(b):
            raise PeerUnreachable(f"{b} does not answer")
        if not link.up:
            link.up = True
            self._networks[a].greet(b)
            self._networks[b].greet(a)
        return link

    def get(self, peer: PeerId) -> "MemoryNetwork | None":
        return self._networks.get(peer)

    def providers(self, cid: Cid) -> dict[PeerId, None]:
        return self._providers.setdefault(cid, {})

    def _link(self, a: PeerId, b: PeerId) -> "_Link":
        return self._links.setdefault(frozenset((a, b)), _Link(frozenset((a, b))))


class MemoryNetwork:
    """One peer of a MemoryHub. Implements `network.Network`."""

    def __init__(self, hub: MemoryHub, name: str) -> None:
        self._hub = hub
        self._identity = Identity(sha256(f"memory peer {name}".encode()).digest())
        self._handlers: dict[str, Handler] = {}
        self._greeters: list[Callable[[PeerId], Awaitable[None]]] = []
        self._topics: dict[str, Validator] = {}
        self._seen: set[tuple[PeerId, int]] = set()
        self._published = 0
        self._serving: Counter[tuple[PeerId, str]] = Counter()
        self._refused = Refusals(hub.limits.remembered_peers)
        self._strikes = Strikes(hub.limits)

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return (f"/memory/1/p2p/{self.peer_id}",)

    @property
    def refusals(self) -> Counter[str]:
        """How often something of a stranger was refused, by reason."""
        return self._refused.counts

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(peer for link in self._hub.links_of(self.peer_id) for peer in link.ends - {self.peer_id})

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        await trio.lowlevel.checkpoint()
        for address in addresses:
            peer = PeerId(address.rpartition("/p2p/")[2])
            if self._hub.get(peer) is not None:
                self._hub.link_between(self.peer_id, peer)
                return peer
        raise PeerUnreachable(f"nobody answers at {', '.join(addresses)}")

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        await trio.lowlevel.checkpoint()
        link = self._hub.link_between(self.peer_id, peer)
        await link.wait_flowing()
        other = self._hub.get(peer)
        protocol = next((name for name in protocols if other is not None and name in other._handlers), None)
        if other is None or protocol is None:
            raise PeerUnreachable(f"{peer} speaks none of {', '.join(protocols)}")
        ours, theirs = link.open_pipes(self._hub.window_bytes)
        other.accept(protocol, _MemoryStream(self.peer_id, reads=ours, writes=theirs))
        return _MemoryStream(peer, reads=theirs, writes=ours)

    def handle(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    def on_connect(self, greet: Callable[[PeerId], Awaitable[None]]) -> None:
        self._greeters.append(greet)

    def subscribe(self, topic: str, validate: Validator) -> None:
        self._topics[topic] = validate

    async def publish(self, topic: str, data: bytes) -> None:
        """Raises GossipRefused for more than `gossip_message_bytes`."""
        await trio.lowlevel.checkpoint()
        if len(data) > self._hub.limits.gossip_message_bytes:
            raise GossipRefused("gossip-too-large", f"a message of {len(data)} bytes")
        self._published += 1
        self._relay(topic, (self.peer_id, self._published), data)

    async def provide(self, cid: Cid) -> None:
        await trio.lowlevel.checkpoint()
        self._hub.providers(cid)[self.peer_id] = None

    async def providers(self, cid: Cid, limit: int) -> Sequence[PeerId]:
        await trio.lowlevel.checkpoint()
        return [peer for peer in self._hub.providers(cid) if peer != self.peer_id][:limit]

    def penalise(self, peer: PeerId, reason: str) -> None:
        self._refused.note(peer, reason, fault=True)
        if self._strikes.strike(peer):
            for link in self._hub.links_of(self.peer_id):
                if peer in link.ends:
                    link.cut()

    def shuns(self, peer: PeerId) -> bool:
        return self._strikes.banned(peer)

    def greet(self, peer: PeerId) -> None:
        for greeter in self._greeters:
            self._hub.nursery.start_soon(_at_root, "greeting", greeter, peer)

    def accept(self, protocol: str, stream: "_MemoryStream") -> None:
        key = (stream.peer, protocol)
        if self._serving[key] >= self._hub.limits.streams_per_handler:
            self._refused.note(stream.peer, "streams-of-one-protocol")
            stream.break_off()
            return
        self._serving[key] += 1
        self._hub.nursery.start_soon(self._serve, protocol, stream)

    async def _serve(self, protocol: str, stream: "_MemoryStream") -> None:
        try:
            if not await _at_root(protocol, self._handlers[protocol], stream):
                stream.break_off()
        finally:
            self._serving[stream.peer, protocol] -= 1

    def _relay(self, topic: str, message: tuple[PeerId, int], data: bytes) -> None:
        self._seen.add(message)
        for link in self._hub.links_of(self.peer_id):
            for peer in link.ends - {self.peer_id}:
                self._hub.nursery.start_soon(self._gossip, link, peer, topic, message, data)

    async def _gossip(self, link: "_Link", peer: PeerId, topic: str, message: tuple[PeerId, int], data: bytes) -> None:
        await link.wait_flowing()
        other = self._hub.get(peer)
        if link.up and not link.loses_gossip and other is not None:
            other.hear(self.peer_id, topic, message, data)

    def hear(self, peer: PeerId, topic: str, message: tuple[PeerId, int], data: bytes) -> None:
        """`peer`, a neighbour, hands us a message that some peer published."""
        validate = self._topics.get(topic)
        if validate is None or message in self._seen or message[0] == self.peer_id:
            return
        if len(data) > self._hub.limits.gossip_message_bytes:
            self._refused.note(peer, "gossip-too-large")
            return
        self._seen.add(message)
        try:
            validate(peer, data)
        except GossipRefused:  # whoever validates also counts
            return
        self._relay(topic, message, data)


async def _at_root(name: str, task: Callable[[Argument], Awaitable[None]], argument: Argument) -> bool:
    """Runs a task of its own; whatever it raises ends it alone. False if it raised."""
    try:
        await task(argument)
    except StreamLost as lost:
        _log.debug("event=stream_lost task=%s reason=%r", name, str(lost))
        return False
    except Exception:
        _log.exception("event=stream_failed task=%s", name)
        return False
    return True


@dataclass(slots=True)
class _Link:
    """The way between two peers, up or down."""

    ends: frozenset[PeerId]
    up: bool = False
    forbidden: bool = False
    loses_gossip: bool = False
    _flowing: trio.Event = field(default_factory=trio.Event)
    _pipes: "list[_Pipe]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self._flowing.set()

    async def wait_flowing(self) -> None:
        await self._flowing.wait()

    def set_stalled(self, stalled: bool) -> None:
        if not stalled:
            self._flowing.set()
        elif self._flowing.is_set():
            self._flowing = trio.Event()

    def open_pipes(self, window_bytes: int) -> "tuple[_Pipe, _Pipe]":
        self._pipes = [pipe for pipe in self._pipes if not pipe.done]
        pipes = _Pipe(self, window_bytes), _Pipe(self, window_bytes)
        self._pipes += pipes
        return pipes

    def cut(self) -> None:
        self.up = False
        self.set_stalled(False)  # whoever waits for the link learns that it is gone
        for pipe in self._pipes:
            pipe.break_off()
        self._pipes.clear()


class _Pipe:
    """One direction of a stream: at most `window_bytes` said and not heard."""

    def __init__(self, link: _Link, window_bytes: int) -> None:
        self._link, self._window_bytes = link, window_bytes
        self._data = bytearray()
        self._ended = self._broken = False
        self._changed = trio.Event()

    @property
    def done(self) -> bool:
        return self._broken or (self._ended and not self._data)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces(data):
            while not self._broken and len(self._data) + len(piece) > self._window_bytes:
                await self._changed.wait()
            if self._broken or self._ended:
                raise StreamLost("the stream is closed")
            self._data += piece
            self._tell()

    async def read(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        await self._link.wait_flowing()
        while not (self._data or self._ended or self._broken):
            await self._changed.wait()
            await self._link.wait_flowing()
        if self._broken:
            raise StreamLost("the stream was reset")
        data = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        self._tell()
        return data

    def end(self) -> None:
        self._ended = True
        self._tell()

    def break_off(self) -> None:
        self._broken = True
        self._data.clear()
        self._tell()

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        size = max(1, self._window_bytes // 4)
        return (data[start : start + size] for start in range(0, len(data), size))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class _MemoryStream:
    """One end of a stream. Implements `network.Stream`."""

    def __init__(self, peer: PeerId, *, reads: _Pipe, writes: _Pipe) -> None:
        self._peer, self._reads, self._writes = peer, reads, writes

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def read(self, max_bytes: int) -> bytes:
        return await self._reads.read(max_bytes)

    async def write(self, data: bytes) -> None:
        await self._writes.write(data)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self._writes.end()

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        self.break_off()

    def break_off(self) -> None:
        self._reads.break_off()
        self._writes.break_off()
