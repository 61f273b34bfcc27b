"""What strangers may cost us, in numbers, and the two books that hold them to it.

What an honest peer may do by accident is not punished; every refusal has a short code and is counted. A misdeed is
logged as a warning, what may happen to anybody at debug level. A stranger can take any number of names, and must not
fill a disk with them: both are logged at most once a minute for each peer and code, and a few times a minute for each
code.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

_log = logging.getLogger(__name__)

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """One node's bounds. The defaults fit a node of 150 MB with a hundred neighbours."""

    # connections
    connections: int = 128  # each costs some 100 KB and a few tasks
    connections_per_peer: int = 4  # both sides may dial at once, and twice; a fifth replaces the first
    inbound_per_ip: int = 32  # a rack or a household behind one address; loopback counts, too
    handshakes: int = 24  # at once, in all: noise costs 3 ms of CPU each, so this is what a flood may queue
    handshakes_per_ip_per_s: float = 8.0
    handshake_burst_per_ip: float = 32.0
    handshake_timeout_s: float = 10.0  # a far peer needs five round trips; a slow loris gets no more than this
    handshake_bytes: int = 16 * _KIB  # before the peer is known: multistream and noise need less than 1 KB
    keepalive_s: float = 30.0  # between pings; after two without a sign of life the connection is gone
    write_timeout_s: float = 30.0  # nothing of what waits for a peer was taken for so long
    # streams
    inbound_streams: int = 128  # of one connection at once; bitswap and rpc together want a few dozen
    refused_streams: int = 256  # over that, on one connection, before it is cut
    streams_per_handler: int = 32  # that one peer opened for one protocol, at once
    negotiation_timeout_s: float = 5.0  # from a stream's opening until it has named its protocol
    negotiation_bytes: int = 4 * _KIB  # for that; a protocol's name has some 30 bytes
    identify_bytes: int = 8 * _KIB  # what a peer says of itself; go-libp2p takes as much
    linger_s: float = 30.0  # for the other side to end a stream that we have ended and no longer read
    # bytes
    stream_window_bytes: int = 256 * _KIB  # what yamux lets every stream send unasked
    largest_window_bytes: int = _MIB  # what a window grows to while its reader keeps up: 10 MB/s at 100 ms
    buffered_bytes_per_connection: int = 4 * _MIB  # received and not read yet: sixteen streams' worth
    buffered_bytes: int = 32 * _MIB  # of all connections together
    unsent_bytes: int = 256 * _KIB  # of one connection, until writers wait
    unsent_replies: int = 1024  # pongs and resets for a peer that asks for them and reads nothing
    bytes_per_s: float = 64.0 * _MIB  # of one peer: above what Python's noise attains, so a fair peer never waits
    burst_bytes: float = 8.0 * _MIB
    frame_cost_bytes: int = 16 * _KIB  # what a frame costs us at least, however small: 4,000 a second
    # gossip
    gossip_message_bytes: int = 64 * _KIB  # a presence record has about 1 KB
    gossip_rpc_bytes: int = 256 * _KIB  # several messages and control entries in one
    gossip_messages_per_s: float = 100.0  # that one neighbour hands us; each costs a signature check of 0.2 ms
    gossip_burst: float = 400.0
    # the DHT
    dht_message_bytes: int = 64 * _KIB  # twenty peers with their signed addresses have 20 KB
    dht_records: int = 16_384  # provider records of strangers: some 10 MB
    dht_records_per_peer: int = 2_048
    # misdeeds
    strikes: int = 10  # then a ban; one is forgiven every forgive_s
    forgive_s: float = 60.0
    ban_s: float = 600.0
    remembered_peers: int = 4096  # in each book; the oldest entry is forgotten first
    known_peers: int = 512  # whose addresses are kept though they are neither connected nor of the DHT's table


class TokenBucket:
    """`rate` tokens a second up to `burst`. `take` may go into debt, and says how long to wait until it is paid."""

    __slots__ = ("_burst", "_clock", "_level", "_rate", "_seen_s")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._seen_s = burst, clock()

    def take(self, count: float) -> float:
        """Takes `count` tokens. Returns the seconds to wait before going on: 0.0 while there were enough."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._seen_s) * self._rate) - count
        self._seen_s = now
        return max(0.0, -self._level / self._rate)

    def try_take(self, count: float) -> bool:
        """Takes `count` tokens if there are as many."""
        if self.take(0.0) > 0.0 or self._level < count:
            return False
        self._level -= count
        return True


class Refusals:
    """Counts every refusal by its code, and logs some."""

    _LOG_EVERY_S: Final = 60.0  # of one peer and code
    _LINES: Final = 12.0  # of one code, in as long; the total in each line tells of those between

    def __init__(self, remembered: int, clock: Callable[[], float] = trio.current_time) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._remembered = remembered
        self._logged_s: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lines: dict[str, TokenBucket] = {}

    def note(self, who: str, code: str, *, fault: bool = False) -> None:
        """`who` is a peer id or an IP address; `code` one of ours, never a stranger's text. `fault`: no honest peer
        does such a thing."""
        self.counts[code] += 1
        now = self._clock()
        logged_s = self._logged_s.get((who, code))
        if logged_s is not None and now - logged_s < self._LOG_EVERY_S:
            return
        if code not in self._lines:
            self._lines[code] = TokenBucket(self._LINES / self._LOG_EVERY_S, self._LINES, self._clock)
        if not self._lines[code].try_take(1):
            return
        self._logged_s[who, code] = now
        self._logged_s.move_to_end((who, code))
        while len(self._logged_s) > self._remembered:
            self._logged_s.popitem(last=False)
        level = logging.WARNING if fault else logging.DEBUG
        _log.log(level, "event=peer_refused peer=%s reason=%s total=%d", who, code, self.counts[code])


class Strikes:
    """Who misbehaved how often lately. Bounded: an attacker with new names forgets only other attackers' entries."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = trio.current_time) -> None:
        self._limits, self._clock = limits, clock
        self._struck: OrderedDict[str, TokenBucket] = OrderedDict()
        self._banned_until_s: OrderedDict[str, float] = OrderedDict()

    def strike(self, peer: str) -> bool:
        """Notes one misdeed; True if with this one the peer is banned."""
        allowance = self._struck.pop(peer, None)
        if allowance is None:
            allowance = TokenBucket(1.0 / self._limits.forgive_s, self._limits.strikes - 1, self._clock)
        if allowance.try_take(1.0):
            self._struck[peer] = allowance
            self._forget(self._struck)
            return False
        self.ban(peer)
        return True

    def ban(self, peer: str) -> None:
        self._banned_until_s[peer] = self._clock() + self._limits.ban_s
        self._banned_until_s.move_to_end(peer)
        self._forget(self._banned_until_s)

    def banned(self, peer: str) -> bool:
        until_s = self._banned_until_s.get(peer)
        if until_s is None:
            return False
        if self._clock() >= until_s:
            del self._banned_until_s[peer]
            return False
        return True

    def _forget(self, book: "OrderedDict[str, TokenBucket] | OrderedDict[str, float]") -> None:
        while len(book) > self._limits.remembered_peers:
            book.popitem(last=False)
