"""py-libp2p's swarm and host, put together with our transport and muxer, and held to our limits.

What the library does otherwise, and is worked round here:
- its muxer selection builds its own yamux whatever muxer it is given;
- a handler, or the negotiation before it, that raises anything unforeseen ends the whole swarm;
- negotiation reads messages of any length; nothing bounds the streams of one protocol;
- its auto-connector aims for 200 connections, and its resource manager counts what we bound ourselves.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Final

import trio
from libp2p.abc import IMuxedConn, INetStream, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from openlora.p2p.errors import StreamLost
from openlora.p2p.host.framing import FrameLengths
from openlora.p2p.host.guard import Guard
from openlora.p2p.host.peers import KnownPeers
from openlora.p2p.host.stream import YamuxStream
from openlora.p2p.host.tcp import GuardedTcp, metered
from openlora.p2p.host.yamux import PROTOCOL_ID as YAMUX
from openlora.p2p.host.yamux import YamuxConnection
from openlora.p2p.identity import Identity
from openlora.p2p.limits import Limits
from openlora.p2p.network import PeerId

_log = logging.getLogger(__name__)
_NEVER_S: Final = 1e9


class YamuxOnly(MuxerMultistream):
    """Negotiates yamux, which is then ours."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(MappingProxyType({TProtocol(YAMUX): YamuxConnection}))
        self._guard = guard

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        await self._selector.select(conn, conn.is_initiator, ceil(self._guard.limits.handshake_timeout_s))
        socket = metered(conn)
        socket.identify()
        return YamuxConnection(conn, peer_id, self._guard, socket.traffic)


class GuardedHost(BasicHost):
    """The library's host, whose streams are bounded before their protocol is known, and counted after."""

    def __init__(
        self,
        swarm: Swarm,
        guard: Guard,
        known: KnownPeers,
        announce: Sequence[Multiaddr] | None,
        *,
        observe: bool,
    ) -> None:
        self.known: Final = known
        self._guard = guard
        self._serving: Counter[tuple[PeerId, str]] = Counter()
        self._longest_frames: dict[str, tuple[int, str]] = {}
        for protocol in (IDENTIFY, IDENTIFY_PUSH):
            self.bound_frames(protocol, guard.limits.identify_bytes, "identify-too-large")
        super().__init__(
            swarm,
            negotiate_timeout=ceil(guard.limits.negotiation_timeout_s),
            announce_addrs=announce,
            disable_identify_address_discovery=not observe,
        )

    def bound_frames(self, protocol: str, max_bytes: int, code: str) -> None:
        """A peer that announces more than `max_bytes` on a stream of `protocol`, whoever opened it, is refused so."""
        self._longest_frames[protocol] = max_bytes, code

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        stream = await super().new_stream(peer_id, protocol_ids)
        inner = muxed(stream)
        self._negotiated(inner, stream.get_protocol())
        connection = stream.swarm_conn  # type: ignore[attr-defined]  # of NetStream, the only implementation
        inner.on_over = partial(connection.remove_stream, stream)  # else it is kept until the connection ends
        return stream

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        """The root of the task of every stream that a peer opens."""
        stream = muxed(net_stream)
        peer = stream.muxed_conn.peer
        try:
            await self._negotiate_and_serve(net_stream, stream, peer)
            stream.end()
        except (BaseLibp2pError, StreamLost) as lost:
            _log.debug("event=stream_lost peer=%s reason=%r", peer, str(lost))
            stream.break_off()
        except Exception as error:
            self._guard.refuse(peer, "stream-error")
            _log.debug("event=stream_failed peer=%s", peer, exc_info=error)
            stream.break_off()
        finally:
            stream.discard()

    async def _negotiate_and_serve(self, net_stream: INetStream, stream: YamuxStream, peer: PeerId) -> None:
        protocol: TProtocol | None = None
        with trio.move_on_after(self._guard.limits.negotiation_timeout_s), suppress(BaseLibp2pError, ValueError):
            protocol, handler = await self.multiselect.negotiate(
                MultiselectCommunicator(net_stream), ceil(2 * self._guard.limits.negotiation_timeout_s)
            )
        if protocol is None or handler is None:
            if not stream.over:  # the peer, or its connection, may simply have gone
                self._guard.refuse(peer, "negotiation")
            stream.break_off()
            return
        self._negotiated(stream, protocol)
        net_stream.set_protocol(protocol)
        key = (peer, str(protocol))
        if self._serving[key] >= self._guard.limits.streams_per_handler:
            self._guard.refuse(peer, "streams-of-one-protocol")
            stream.break_off()
            return
        self._serving[key] += 1
        try:
            await handler(net_stream)
        finally:
            self._serving[key] -= 1
            if not self._serving[key]:
                del self._serving[key]

    def _negotiated(self, stream: YamuxStream, protocol: str | None) -> None:
        stream.budget_bytes = None
        if (longest := self._longest_frames.get(protocol or "")) is not None:
            stream.frames = FrameLengths(*longest)


class _NoAutoConnector(AutoConnector):
    """`discovery` says whom to dial. The library's would also note every peer that ever left."""

    async def maybe_connect(self) -> None:
        pass

    def record_disconnect(self, peer_id: ID) -> None:
        pass


def muxed(stream: INetStream) -> YamuxStream:
    """Our stream inside the library's."""
    inner = getattr(stream, "muxed_stream", None)
    if not isinstance(inner, YamuxStream):
        raise TypeError("the library wraps streams in another way than it used to")
    return inner


def build_host(
    identity: Identity, limits: Limits, guard: Guard, announce: Sequence[str], *, observe_addresses: bool
) -> tuple[GuardedHost, Swarm]:
    """A host over TCP, noise and our yamux alone; nothing runs yet."""
    keys = create_new_key_pair(identity.seed())
    peer_id = ID.from_pubkey(keys.public_key)
    known = KnownPeers(limits.known_peers)
    known.add_key_pair(peer_id, keys)
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE: noise}, {TProtocol(YAMUX): YamuxConnection})
    upgrader.muxer_multistream = YamuxOnly(guard)
    swarm = Swarm(
        peer_id,
        known,
        upgrader,
        transports=[GuardedTcp(guard)],
        retry_config=RetryConfig(max_retries=0),  # whoever dials knows when to try again
        connection_config=ConnectionConfig(
            max_connections=limits.connections + limits.handshakes,  # the guard counts; this only backs it
            high_watermark=limits.connections + limits.handshakes,
            min_connections=0,
            low_watermark=0,
            max_connections_per_peer=limits.connections_per_peer + 1,
            inbound_upgrade_timeout=limits.handshake_timeout_s,
            outbound_upgrade_timeout=limits.handshake_timeout_s,
            inbound_stream_protocol_negotiation_timeout=ceil(limits.negotiation_timeout_s),
            outbound_stream_protocol_negotiation_timeout=ceil(limits.negotiation_timeout_s),
            dial_timeout=limits.handshake_timeout_s,
            auto_connect_interval=_NEVER_S,
        ),
    )
    swarm.auto_connector = _NoAutoConnector(swarm, auto_connect_interval=_NEVER_S)
    addresses = [Multiaddr(address) for address in announce] or None
    return GuardedHost(swarm, guard, known, addresses, observe=observe_addresses), swarm
