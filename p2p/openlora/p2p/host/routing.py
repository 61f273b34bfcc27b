"""Kademlia under our own protocol id: who has what, and who else there is. Provider records only, and bounded."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator

from openlora.p2p.content.cid import Cid
from openlora.p2p.host.guard import Guard
from openlora.p2p.host.swarm import GuardedHost
from openlora.p2p.limits import Limits
from openlora.p2p.network import PeerId

_log = logging.getLogger(__name__)

PROTOCOL: Final = "/openlora/kad/1.0.0"
_RECORD_LIFE_S: Final = 3600  # nodes come and go within the hour; the library keeps records for two days
_ANNOUNCE_EVERY_S: Final = _RECORD_LIFE_S / 3
_ANNOUNCE_PAUSE_S: Final = 0.5  # between two CIDs, so that a thousand of them are no burst
_QUERY_TIMEOUT_S: Final = 5.0
_SERVE_TIMEOUT_S: Final = 30.0  # for all queries on one stream
_QUERIES_AT_ONCE: Final = 3
_ADDRESS_LIFE_S: Final = 3600
_ADDRESSES_PER_PROVIDER: Final = 8


def _take_own_protocol(limits: Limits) -> None:
    """The library's id, its message bound of 4 MiB and its record life are constants of five modules. A process has
    one network, or several that agree."""
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        setattr(module, "PROTOCOL_ID", TProtocol(PROTOCOL))  # noqa: B010 - the modules differ, the name does not
    for module in (kad_dht, peer_routing, provider_store, value_store):
        setattr(module, "MAX_DHT_MESSAGE_SIZE", limits.dht_message_bytes)  # noqa: B010
    provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL = _RECORD_LIFE_S


class _NoValues(NamespacedValidator):
    """Nobody may put a value into our memory."""

    def __init__(self) -> None:
        super().__init__({}, strict_validation=True)

    def validate(self, key: str, value: bytes) -> None:
        raise InvalidRecordType("this network keeps no values")


class _BoundedProviders(ProviderStore):
    """Provider records of strangers: so many in all, so many of each peer, and the oldest key goes first."""

    def __init__(self, host: BasicHost, routing: peer_routing.PeerRouting, guard: Guard) -> None:
        super().__init__(host, routing)
        self._guard = guard
        self._of_peer: Counter[str] = Counter()

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        peer = str(provider.peer_id)
        known = peer in self.providers.get(key, ())
        if not known and provider.peer_id != self.local_peer_id and not self._make_room(peer):
            self._guard.refuse(peer, "dht-records")
            return
        super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[:_ADDRESSES_PER_PROVIDER]))
        if not known and peer in self.providers.get(key, ()):
            self._of_peer[peer] += 1

    def _make_room(self, peer: str) -> bool:
        limits = self._guard.limits
        if self._of_peer[peer] < limits.dht_records_per_peer and self._of_peer.total() < limits.dht_records:
            return True
        # The library deletes what has expired by itself and tells nobody: count anew.
        self._of_peer = Counter(each for records in self.providers.values() for each in records)
        while self._of_peer.total() >= limits.dht_records:
            self._of_peer -= Counter(self.providers.pop(next(iter(self.providers))).keys())
        return self._of_peer[peer] < limits.dht_records_per_peer


class Routing:
    """Owns the DHT: what we provide is announced now and again; lookups ask the nodes nearest to a CID."""

    def __init__(self, host: GuardedHost, guard: Guard) -> None:
        _take_own_protocol(guard.limits)
        self._host = host
        self._provided: dict[Cid, None] = {}
        self.dht: Final = KadDHT(host, DHTMode.SERVER, validator=_NoValues(), validator_changed=True)
        self._providers = _BoundedProviders(host, self.dht.peer_routing, guard)
        self.dht.provider_store = self._providers
        self.dht._provider_rate_max = 100  # announcements of one peer in 10 s; the library's 10 are one small node's
        # It serves twelve streams at once, of everybody together, for as long as they stay open: who holds twelve has
        # stopped the DHT. The host's cap is for each peer, and here is the end of a long silence.
        self.dht._inbound_limiter = trio.CapacityLimiter(math.inf)
        host.bound_frames(PROTOCOL, guard.limits.dht_message_bytes, "dht-too-large")
        host.set_stream_handler(TProtocol(PROTOCOL), self._serve)

    async def provide(self, cid: Cid) -> None:
        """Announces `cid` at once, and from then on every twenty minutes."""
        self._provided[cid] = None
        await self._announce(cid)

    async def find_providers(self, cid: Cid, limit: int) -> Sequence[PeerId]:
        """At most `limit` peers that say they have `cid`, whose addresses are then known to the host."""
        key = _key(cid)
        found: dict[ID, None] = {}
        for provider in self._providers.get_providers(key):
            self._meet(provider, found)
        asking = trio.CapacityLimiter(_QUERIES_AT_ONCE)

        async def ask(peer: ID, enough: trio.CancelScope) -> None:
            async with asking:
                with trio.move_on_after(_QUERY_TIMEOUT_S):
                    providers, _ = await self._providers._get_providers_from_peer_with_closers(peer, key)
                    for provider in providers[: 2 * limit]:
                        self._meet(provider, found)
            if len(found) >= limit:
                enough.cancel()

        if len(found) < limit:
            nearest = await self.dht.peer_routing.find_closest_peers_network(key)
            async with trio.open_nursery() as nursery:
                for peer in nearest:
                    if peer != self._host.get_id():
                        nursery.start_soon(ask, peer, nursery.cancel_scope)
        return [PeerId(str(peer)) for peer in list(found)[:limit]]

    def known_peers(self) -> list[ID]:
        """The nodes of the routing table: they speak our protocol, or said so."""
        return self.dht.routing_table.get_peer_ids()

    async def look_around(self) -> None:
        """Finds the nodes nearest to us, and is found by them."""
        # Not the library's refresh, which also looks up a random key for each of its buckets: it does so by itself.
        for peer in await self.dht.peer_routing.find_closest_peers_network(self._host.get_id().to_bytes()):
            await self.dht.routing_table.add_peer(peer)

    async def keep_announced(self) -> None:
        while True:
            await trio.sleep(_ANNOUNCE_EVERY_S)
            self._providers.cleanup_expired()
            for cid in tuple(self._provided):
                await self._announce(cid)
                await trio.sleep(_ANNOUNCE_PAUSE_S)

    async def _serve(self, stream: INetStream) -> None:
        with trio.move_on_after(_SERVE_TIMEOUT_S):
            await self.dht.handle_stream(stream)

    async def _announce(self, cid: Cid) -> None:
        with trio.move_on_after(4 * _QUERY_TIMEOUT_S):
            await self._providers.provide(_key(cid))

    def _meet(self, provider: PeerInfo, found: dict[ID, None]) -> None:
        if provider.peer_id == self._host.get_id():
            return
        if provider.addrs:
            addresses = provider.addrs[:_ADDRESSES_PER_PROVIDER]
            self._host.get_peerstore().add_addrs(provider.peer_id, addresses, _ADDRESS_LIFE_S)
        found[provider.peer_id] = None


def _key(cid: Cid) -> bytes:
    """The multihash of a CID, which is what Kademlia knows content by."""
    return b"\x12\x20" + cid.digest
