"""Who may connect, and what each connection may cost: one book for the whole host.

The muxer (`yamux`), the transport (`tcp`) and the host ask it; it knows nothing of them but that a connection can be
cut. Everything it keeps for a peer or an address is bounded or ends with the connection.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from openlora.p2p.limits import Limits, Refusals, Strikes, TokenBucket
from openlora.p2p.network import PeerId


@dataclass(slots=True)
class Traffic:
    """Bytes on the wire, all overhead included."""

    bytes_in: int = 0
    bytes_out: int = 0


class GuardedConnection(Protocol):
    """What the guard needs of an established connection."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def inbound_from(self) -> str | None:
        """The address that it came from; None if we dialled."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Received and not read yet."""
        ...

    @property
    def traffic(self) -> Traffic: ...

    def cut(self) -> None:
        """Ends the connection at once."""
        ...


class Guard:
    """Owns the counts of connections, bytes, misdeeds and refusals."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = trio.current_time) -> None:
        self.limits = limits
        self._clock = clock
        self._refusals = Refusals(limits.remembered_peers, clock)
        self._strikes = Strikes(limits, clock)
        self._inbound: Counter[str] = Counter()  # by IP address
        self._handshakes: dict[object, tuple[str, Callable[[], None]]] = {}  # (address, what ends it), oldest first
        self._handshake_rates: OrderedDict[str, TokenBucket] = OrderedDict()
        self._connections: dict[PeerId, list[GuardedConnection]] = {}
        self._byte_rates: dict[PeerId, TokenBucket] = {}
        self._past: OrderedDict[PeerId, Traffic] = OrderedDict()  # of connections that ended
        self.buffered_bytes = 0

    @property
    def refusals(self) -> Counter[str]:
        return self._refusals.counts

    def refuse(self, who: str, code: str) -> None:
        """Counts that something of `who` (a peer id or an IP address) was refused, which may happen to anybody."""
        self._refusals.note(who, code)

    def penalise(self, peer: PeerId, code: str) -> None:
        """A misdeed: counted, and with too many of them the peer is cut off and banned for a while."""
        self._refusals.note(peer, code, fault=True)
        if self._strikes.strike(peer):
            self._refusals.note(peer, "banned", fault=True)
            for connection in tuple(self._connections.get(peer, ())):
                connection.cut()

    def banned(self, peer: PeerId) -> bool:
        return self._strikes.banned(peer)

    @contextmanager
    def inbound(self, ip: str) -> Iterator[bool]:
        """Holds one place of `ip` for a connection's whole life; False if there is none."""
        code = self._why_not(ip)
        if code is not None:
            self.refuse(ip, code)
            yield False
            return
        self._inbound[ip] += 1
        try:
            yield True
        finally:
            self._inbound[ip] -= 1
            if not self._inbound[ip]:
                del self._inbound[ip]

    @contextmanager
    def handshake(self, ip: str, cut: Callable[[], None]) -> Iterator[None]:
        """Counts one that is going on. `cut` ends it, should somebody from a less crowded address need its place."""
        place = object()
        self._handshakes[place] = (ip, cut)
        try:
            yield
        finally:
            self._handshakes.pop(place, None)

    def admit(self, connection: GuardedConnection) -> bool:
        """Whether an authenticated peer may stay connected. One connection too many replaces the peer's oldest."""
        peer = connection.peer
        ours = self._connections.get(peer, [])
        if self.banned(peer):
            self.refuse(peer, "banned")
            return False
        full = sum(map(len, self._connections.values())) >= self.limits.connections
        if full and not ours and not self._displace(connection):
            self.refuse(peer, "connections")
            return False
        if len(ours) >= self.limits.connections_per_peer:
            self.refuse(peer, "connections-per-peer")
            ours[0].cut()
        self._connections.setdefault(peer, []).append(connection)
        return True

    def released(self, connection: GuardedConnection) -> None:
        """The connection has ended. Does nothing for one that was not admitted, or ended before."""
        peer = connection.peer
        left = self._connections.get(peer, [])
        if connection not in left:
            return
        left.remove(connection)
        if not left:
            del self._connections[peer]
            self._byte_rates.pop(peer, None)
        past = self._past.setdefault(peer, Traffic())
        past.bytes_in += connection.traffic.bytes_in
        past.bytes_out += connection.traffic.bytes_out
        self._past.move_to_end(peer)
        while len(self._past) > self.limits.remembered_peers:
            self._past.popitem(last=False)

    def pay(self, peer: PeerId, count: float) -> float:
        """Charges what was received to all connections of `peer` together. Returns the seconds not to read more."""
        rate = self._byte_rates.get(peer)
        if rate is None:
            rate = TokenBucket(self.limits.bytes_per_s, self.limits.burst_bytes, self._clock)
            self._byte_rates[peer] = rate
        return rate.take(count)

    def buffer(self, count: int) -> None:
        """`count` more bytes (fewer, if negative) wait to be read. Over the limit, whoever has most waiting is cut."""
        self.buffered_bytes += count
        if count > 0 and self.buffered_bytes > self.limits.buffered_bytes:
            connections = (connection for several in self._connections.values() for connection in several)
            largest = max(connections, key=lambda connection: connection.buffered_bytes)
            self.refuse(largest.peer, "buffered-bytes")
            largest.cut()

    def traffic(self) -> dict[PeerId, Traffic]:
        """Bytes exchanged with each peer since the start, ended connections included."""
        sums = {peer: Traffic(past.bytes_in, past.bytes_out) for peer, past in self._past.items()}
        for peer, connections in self._connections.items():
            total = sums.setdefault(peer, Traffic())
            total.bytes_in += sum(connection.traffic.bytes_in for connection in connections)
            total.bytes_out += sum(connection.traffic.bytes_out for connection in connections)
        return sums

    def _why_not(self, ip: str) -> str | None:
        if self._inbound[ip] >= self.limits.inbound_per_ip:
            return "connections-per-address"
        rate = self._handshake_rates.pop(ip, None)
        if rate is None:
            rate = TokenBucket(self.limits.handshakes_per_ip_per_s, self.limits.handshake_burst_per_ip, self._clock)
        self._handshake_rates[ip] = rate
        while len(self._handshake_rates) > self.limits.remembered_peers:
            self._handshake_rates.popitem(last=False)
        if not rate.try_take(1.0):
            return "handshakes-per-address"
        full = len(self._handshakes) >= self.limits.handshakes
        return "handshakes" if full and not self._hurry(ip) else None

    def _hurry(self, ip: str) -> bool:
        """Makes a place for a handshake with `ip`: the address with most under way loses its oldest, which has had its
        time, since an honest one takes a second at worst. False if that address is `ip` itself."""
        counts = Counter(address for address, _ in self._handshakes.values())
        crowded, most = counts.most_common(1)[0]
        if most <= counts[ip]:
            return False
        place = next(place for place, (address, _) in self._handshakes.items() if address == crowded)
        _, cut = self._handshakes.pop(place)
        self.refuse(crowded, "handshakes")
        cut()
        return True

    def _displace(self, newcomer: GuardedConnection) -> bool:
        """Makes a place for a connection: the address that holds most loses its newest. Whoever comes from many
        addresses may fill the places, but cannot drive out those who have one."""
        inbound = [each for several in self._connections.values() for each in several if each.inbound_from is not None]
        counts = Counter(each.inbound_from for each in inbound)
        crowded, most = max(counts.items(), key=lambda item: item[1], default=(None, 0))
        if most < counts[newcomer.inbound_from] + 2:
            return False
        newest = next(each for each in reversed(inbound) if each.inbound_from == crowded)
        self.refuse(newest.peer, "connections")
        newest.cut()
        return True
