"""Finding peers and staying connected to enough of them: bootstrap peers, the DHT, mDNS, and a router's port mapping.

The library dials only one of a peer's TCP addresses, blocks a peer that failed for a minute, and gives bootstrap peers
one try. Here every address is tried in turn, and bootstrap peers again and again.
"""

import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.discovery.mdns import MDNSDiscovery, create_mdns_discovery
from libp2p.discovery.upnp.upnp import UpnpManager
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from openlora.p2p.errors import P2PError, PeerUnreachable
from openlora.p2p.host.guard import Guard
from openlora.p2p.host.routing import Routing
from openlora.p2p.host.swarm import GuardedHost
from openlora.p2p.identity import public_key_of
from openlora.p2p.network import PeerId

_log = logging.getLogger(__name__)

_WANTED_PEERS: Final = 8  # with a gossip degree of 4, any one of them may fail
_FEW_PEERS: Final = 3  # below this, bootstrap peers are dialled
_LOOK_EVERY_S: Final = 5.0
_SHORTEST_BACKOFF_S: Final = 1.0
_LONGEST_BACKOFF_S: Final = 60.0
_LOOK_AROUND_EVERY_S: Final = 300.0
_ADDRESS_LIFE_S: Final = 3600
_ADDRESSES_PER_PEER: Final = 8
_LOOPBACK: Final = ("/ip4/127.", "/ip6/::1/")
_MDNS_QUEUE: Final = 32
_UPNP_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """One way to reach one peer."""

    peer: ID
    address: Multiaddr  # without /p2p/…

    @classmethod
    def parse(cls, text: str) -> "PeerAddress":
        """From "/ip4/…/tcp/…/p2p/12D3Koo…". Raises P2PError."""
        try:
            info = info_from_p2p_addr(Multiaddr(text))
            public_key_of(str(info.peer_id))
        except (MultiaddrError, BaseLibp2pError, ValueError):
            raise P2PError(f"{text!r} is no address of a peer; write /ip4/…/tcp/…/p2p/12D3Koo…") from None
        return cls(info.peer_id, info.addrs[0])


class Discovery:
    """Owns every dial. `run` keeps us connected for as long as it runs."""

    def __init__(
        self,
        host: GuardedHost,
        swarm: Swarm,
        routing: Routing,
        guard: Guard,
        bootstrap: Sequence[str],
    ) -> None:
        self._host, self._swarm, self._routing, self._guard = host, swarm, routing, guard
        self._bootstrap = [PeerAddress.parse(address) for address in bootstrap]
        self._dialling: dict[ID, trio.Event] = {}
        self._changed = trio.Event()

    async def dial(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Returns when connected, over whichever address answers first in their order. Raises PeerUnreachable."""
        if peer == self._host.get_id():
            raise PeerUnreachable("this is our own address")
        if self._guard.banned(PeerId(str(peer))):
            raise PeerUnreachable(f"{peer} is banned for now")
        while peer in self._dialling:
            await self._dialling[peer].wait()
        if self._swarm.get_connections(peer):
            return
        self._dialling[peer] = trio.Event()
        try:
            await self._dial(peer, addresses)
        finally:
            self._dialling.pop(peer).set()

    async def dial_known(self, peer: ID) -> None:
        """Dials a peer by the addresses the host knows of. Raises PeerUnreachable."""
        if not self._swarm.get_connections(peer):
            await self.dial(peer, self._known_addresses(peer))

    def meet(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        self._host.get_peerstore().add_addrs(peer, list(addresses)[:_ADDRESSES_PER_PEER], _ADDRESS_LIFE_S)

    def hurry(self) -> None:
        """The number of connections has changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, *, mdns: bool, nat: bool) -> None:
        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(self._keep_bootstrapped, address)
            nursery.start_soon(self._keep_looking_around)
            nursery.start_soon(self._keep_connected)
            if mdns:
                nursery.start_soon(self._listen_to_mdns)
            if nat:
                nursery.start_soon(self._map_ports)

    async def _dial(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        failure: BaseException | None = None
        for address in addresses:
            with trio.move_on_after(self._guard.limits.handshake_timeout_s):
                try:
                    await self._swarm.dial_addr(address, peer)
                except (BaseLibp2pError, OSError) as error:
                    failure = error
                else:
                    self._swarm.unblock_peer(peer)
                    self.meet(peer, [address])
                    return
        raise PeerUnreachable(f"{peer} answers at none of {len(addresses)} addresses") from failure

    def _known_addresses(self, peer: ID) -> list[Multiaddr]:
        try:
            addresses = self._host.get_peerstore().addrs(peer)
        except PeerStoreError:
            return []
        # A stranger's loopback address is ours: try it last.
        return sorted(
            addresses[:_ADDRESSES_PER_PEER], key=lambda address: str(address).startswith(("/ip4/127.", "/ip6/::1/"))
        )

    def _connected(self) -> int:
        return len(self._swarm.connections)

    async def _keep_bootstrapped(self, bootstrap: PeerAddress) -> None:
        """Dials one bootstrap peer, for ever with backoff, while we know few others."""
        backoff_s = _SHORTEST_BACKOFF_S
        while True:
            changed = self._changed
            if self._connected() < _FEW_PEERS and not self._swarm.get_connections(bootstrap.peer):
                try:
                    await self.dial(bootstrap.peer, [bootstrap.address])
                    backoff_s = _SHORTEST_BACKOFF_S
                except PeerUnreachable as error:
                    _log.debug("event=bootstrap_unreachable peer=%s reason=%r", bootstrap.peer, str(error))
                    await trio.sleep(backoff_s * random.uniform(0.5, 1.5))  # noqa: S311 - so that not all come at once
                    backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
                    continue
            with trio.move_on_after(_LOOK_EVERY_S):
                await changed.wait()

    async def _keep_looking_around(self) -> None:
        """Asks the DHT who else there is: when somebody has come or gone, and ever more seldom while nobody does. An
        answer has some 3 KB, and every neighbour is asked: whoever has enough of them hardly looks at all."""
        pause_s = _LOOK_EVERY_S
        while True:
            changed = self._changed
            if self._connected():
                await self._routing.look_around()
            if self._connected() >= _WANTED_PEERS:
                pause_s = _LOOK_AROUND_EVERY_S
            with trio.move_on_after(pause_s) as quiet:
                await changed.wait()
                await trio.sleep(1.0)  # identify tells the newcomer's addresses first
                while self._connected() >= _WANTED_PEERS:
                    await self._changed.wait()
            pause_s = min(2 * pause_s, _LOOK_AROUND_EVERY_S) if quiet.cancelled_caught else _LOOK_EVERY_S

    async def _keep_connected(self) -> None:
        """Dials peers we have heard of until we have enough."""
        unreachable: dict[ID, float] = {}
        while True:
            await trio.sleep(_SHORTEST_BACKOFF_S)
            now = trio.current_time()
            unreachable = {peer: until_s for peer, until_s in unreachable.items() if until_s > now}
            if self._connected() >= _WANTED_PEERS:
                continue
            candidates = [peer for peer in self._routing.known_peers() if peer not in unreachable]
            random.shuffle(candidates)
            for peer in candidates:
                if self._swarm.get_connections(peer):
                    continue
                try:
                    await self.dial_known(peer)
                except PeerUnreachable:
                    unreachable[peer] = trio.current_time() + _LONGEST_BACKOFF_S
                break

    async def _listen_to_mdns(self) -> None:
        """Dials whoever announces itself in the local network; the library only notes them."""
        found, heard = trio.open_memory_channel[PeerInfo](_MDNS_QUEUE)
        token = trio.lowlevel.current_trio_token()

        def note(info: PeerInfo) -> None:  # on a thread of zeroconf's
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(_offer, found, info)

        port = next((int(str(a.value_for_protocol("tcp"))) for a in self._host.get_transport_addrs()), 0)
        try:
            discovery = await trio.to_thread.run_sync(_open_mdns, self._swarm, port, self._host)
        except OSError as error:
            _log.warning("event=mdns_unavailable reason=%r", str(error))
            return
        peerDiscovery.register_peer_discovered_handler(note)
        try:
            discovery.start()
            async for info in heard:
                with suppress(PeerUnreachable):
                    await self.dial(info.peer_id, info.addrs[:_ADDRESSES_PER_PEER])
        finally:
            peerDiscovery.unregister_peer_discovered_handler(note)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(discovery.stop)

    async def _map_ports(self) -> None:
        """Asks the router, by UPnP, to let others in. Best effort: most have it off."""
        router = UpnpManager()
        try:
            with trio.move_on_after(_UPNP_TIMEOUT_S):
                if await router.discover():
                    for address in self._host.get_transport_addrs():
                        await router.add_port_mapping(int(str(address.value_for_protocol("tcp"))), "TCP")
        except Exception as error:  # the library raises whatever its C extension does
            _log.info("event=upnp_unavailable reason=%r", str(error))


def _open_mdns(swarm: Swarm, port: int, host: GuardedHost) -> MDNSDiscovery:
    return create_mdns_discovery(swarm, port, host=host)


def _offer(found: trio.MemorySendChannel[PeerInfo], info: PeerInfo) -> None:
    with suppress(trio.WouldBlock, trio.BrokenResourceError):
        found.send_nowait(info)
