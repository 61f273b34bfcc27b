"""The Network over py-libp2p: what the rest of the library sees of a host."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import GossipRefused, P2PError, PeerUnreachable, StreamLost
from openlora.p2p.host.discovery import Discovery, PeerAddress
from openlora.p2p.host.gossip import Gossip
from openlora.p2p.host.guard import Guard, Traffic
from openlora.p2p.host.routing import Routing
from openlora.p2p.host.stream import YamuxStream
from openlora.p2p.host.swarm import GuardedHost, build_host, muxed
from openlora.p2p.host.tcp import check_free
from openlora.p2p.identity import Identity
from openlora.p2p.limits import Limits
from openlora.p2p.network import Handler, PeerId, Stream, Validator

_log = logging.getLogger(__name__)

_CLEAN_EVERY_S: Final = 60.0
_OPEN_TIMEOUT_S: Final = 30.0
_CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where to listen and whom to know. Addresses are multiaddrs; bootstrap peers' end in /p2p/<peer id>."""

    listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/4001",)
    bootstrap: Sequence[str] = ()
    announce: Sequence[str] = ()  # what others are told, instead of where we listen
    mdns: bool = False  # find peers in the local network
    nat: bool = False  # ask the router for a port (UPnP), and believe peers about our address; best effort


@asynccontextmanager
async def open_network(
    identity: Identity, options: HostOptions, limits: Limits | None = None
) -> AsyncIterator["Libp2pNetwork"]:
    """A running host; leaving the context closes every connection. Raises P2PError if it cannot listen."""
    try:
        async with _open(identity, options, limits or Limits()) as network:
            yield network
    except BaseExceptionGroup as group:
        raise _only(group) from None


@asynccontextmanager
async def _open(identity: Identity, options: HostOptions, limits: Limits) -> AsyncIterator["Libp2pNetwork"]:
    guard = Guard(limits)
    host, swarm = build_host(identity, limits, guard, options.announce, observe_addresses=options.nat)
    gossip = Gossip(host, guard)
    routing = Routing(host, guard)
    discovery = Discovery(host, swarm, routing, guard, options.bootstrap)
    host.known.needed = lambda: (host.get_id(), *swarm.connections, *routing.known_peers())
    listen = _listen_addresses(options.listen)
    async with (
        _listeners_closed_after(swarm),
        host.run(listen),
        background_trio_service(gossip.gossipsub),
        background_trio_service(gossip),
        background_trio_service(routing.dht),
        trio.open_nursery() as nursery,
    ):
        if len(swarm.listeners) < len(listen):
            raise P2PError(f"cannot listen on {', '.join(options.listen)}: the port is taken, or not ours to take")
        network = Libp2pNetwork(identity, host, swarm, gossip, routing, discovery, guard, nursery)
        swarm.register_notifee(network.notifee)
        nursery.start_soon(lambda: discovery.run(mdns=options.mdns, nat=options.nat))
        nursery.start_soon(routing.keep_announced)
        nursery.start_soon(_keep_clean, gossip)
        yield network
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _listeners_closed_after(swarm: Swarm) -> AsyncIterator[None]:
    """The library is cancelled in the middle of closing them, and they go on listening until the process ends."""
    try:
        yield
    finally:
        with trio.move_on_after(_CLOSE_TIMEOUT_S) as closing:
            closing.shield = True
            for listener in tuple(swarm.listeners.values()):
                await listener.close()


class Libp2pNetwork:
    """One peer of the real network. Implements `network.Network`."""

    def __init__(
        self,
        identity: Identity,
        host: GuardedHost,
        swarm: Swarm,
        gossip: Gossip,
        routing: Routing,
        discovery: Discovery,
        guard: Guard,
        nursery: trio.Nursery,
    ) -> None:
        self._identity = identity
        self._host, self._swarm, self._gossip = host, swarm, gossip
        self._routing, self._discovery, self._guard = routing, discovery, guard
        self._nursery = nursery
        self._greeters: list[Callable[[PeerId], Awaitable[None]]] = []
        self.notifee: Final = _Notifee(self)

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """Where others can dial us; of a listener on every interface, one address for each of them."""
        p2p = f"/p2p/{self.peer_id}"
        addresses = (str(address).removesuffix(p2p) for address in self._host.get_addrs())
        return [str(each) + p2p for address in addresses for each in expand_wildcard_address(Multiaddr(address))]

    @property
    def refusals(self) -> Counter[str]:
        """How often something of a stranger was refused, by reason."""
        return self._guard.refusals

    def traffic(self) -> dict[PeerId, Traffic]:
        """Bytes on the wire with each peer since the start, all overhead included."""
        return self._guard.traffic()

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(PeerId(str(peer)) for peer in self._swarm.connections)

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Raises P2PError if the addresses are none, or not all of one peer."""
        parsed = [PeerAddress.parse(address) for address in addresses]
        if len({each.peer for each in parsed}) != 1:
            raise P2PError("the addresses are not all of one peer")
        peer = parsed[0].peer
        await self._discovery.dial(peer, [each.address for each in parsed])
        return PeerId(str(peer))

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        peer_id = ID.from_string(peer)
        await self._discovery.dial_known(peer_id)
        try:
            with trio.fail_after(_OPEN_TIMEOUT_S):
                stream = await self._host.new_stream(peer_id, [TProtocol(protocol) for protocol in protocols])
        except (BaseLibp2pError, OSError, trio.TooSlowError) as error:
            raise PeerUnreachable(f"{peer} opens no stream for {' or '.join(protocols)}: {error}") from error
        return Libp2pStream(stream)

    def handle(self, protocol: str, handler: Handler) -> None:
        async def serve(stream: INetStream) -> None:
            try:
                await handler(Libp2pStream(stream))
            except (P2PError, BaseLibp2pError):
                raise
            except Exception:
                _log.exception("event=handler_failed protocol=%s", protocol)
                muxed(stream).break_off()

        self._host.set_stream_handler(TProtocol(protocol), serve)

    def on_connect(self, greet: Callable[[PeerId], Awaitable[None]]) -> None:
        self._greeters.append(greet)

    def subscribe(self, topic: str, validate: Validator) -> None:
        """`validate` gets the neighbour that handed us the message, not its author: it is who may be penalised."""
        self._gossip.deliver(topic, validate)
        self._nursery.start_soon(self._gossip.subscribe, topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Raises GossipRefused for more than `gossip_message_bytes`."""
        if len(data) > self._guard.limits.gossip_message_bytes:
            raise GossipRefused("gossip-too-large", f"a message of {len(data)} bytes")
        await self._gossip.publish(topic, data)
        await trio.lowlevel.checkpoint()  # so that the queues of neighbours drain during a burst

    async def provide(self, cid: Cid) -> None:
        await self._routing.provide(cid)

    async def providers(self, cid: Cid, limit: int) -> Sequence[PeerId]:
        return await self._routing.find_providers(cid, limit)

    def penalise(self, peer: PeerId, reason: str) -> None:
        self._guard.penalise(peer, reason)

    def greet(self, peer: ID) -> None:
        self._discovery.hurry()
        for greeter in self._greeters:
            self._nursery.start_soon(_at_root, greeter, PeerId(str(peer)))

    def parted(self) -> None:
        self._discovery.hurry()


class Libp2pStream:
    """Implements `network.Stream` over our own yamux; the library's wrapper adds states that forget half-closing."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._muxed: YamuxStream = muxed(stream)

    @property
    def peer(self) -> PeerId:
        return self._muxed.muxed_conn.peer

    async def read(self, max_bytes: int) -> bytes:
        try:
            return await self._muxed.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except BaseLibp2pError as error:
            raise StreamLost(str(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            await self._muxed.write(data)
        except BaseLibp2pError as error:
            raise StreamLost(str(error)) from error

    async def close(self) -> None:
        await self._muxed.close()

    async def reset(self) -> None:
        await self._muxed.reset()


class _Notifee(INotifee):
    """Passes on who has come and gone."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self._network = network

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        if len(network.get_connections(conn.muxed_conn.peer_id)) == 1:
            self._network.greet(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._network.parted()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass


def _only(error: BaseException) -> BaseException:
    """The one error inside six nurseries; a group if there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _keep_clean(gossip: Gossip) -> None:
    while True:
        await trio.sleep(_CLEAN_EVERY_S)
        gossip.forget_old()


async def _at_root(greet: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
    """Runs a greeting, whose failure ends it alone."""
    try:
        await greet(peer)
    except P2PError as error:
        _log.debug("event=greeting_lost peer=%s reason=%r", peer, str(error))
    except Exception:
        _log.exception("event=greeting_failed peer=%s", peer)


def _listen_addresses(addresses: Sequence[str]) -> list[Multiaddr]:
    """Parsed, and free to listen on."""
    try:
        parsed = [Multiaddr(address) for address in addresses]
        for address in parsed:
            check_free(address)
    except (MultiaddrError, ValueError) as error:
        raise P2PError(f"no address to listen on: {error}") from None
    except OSError as error:
        raise P2PError(f"cannot listen on {', '.join(addresses)}: the port is taken, or not ours to take") from error
    return parsed
