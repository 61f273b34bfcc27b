"""What an exchange of blocks may cost, in numbers. Times are in seconds, sizes in bytes."""

from dataclasses import dataclass
from typing import Final

from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class BitswapLimits:
    """The defaults suit a node of 150 MB with a hundred neighbours."""

    # messages
    message_bytes: int = MAX_BLOCK_BYTES + 64 * _KIB  # from a peer that we asked for blocks lately
    unasked_message_bytes: int = 256 * _KIB  # from any other: wantlists and presences
    unasked_bytes_per_s: float = 64.0 * _KIB  # of these, on average: 1,500 wants, which take 10 ms to decode …
    unasked_bytes: float = 256.0 * _KIB  # … and at once
    paced_peers: int = 1024
    asked_lately_s: float = 60.0  # a late answer is no misdeed
    message_timeout_s: float = 30.0  # from a message's length to its last byte
    idle_timeout_s: float = 600.0  # between two messages of one stream
    # serving
    wants_per_peer: int = 1024
    presences_per_message: int = 256
    open_timeout_s: float = 10.0
    write_timeout_s: float = 15.0  # for one block: a reader below 18 kB/s is dropped, and may come again
    linger_s: float = 5.0  # an idle stream of ours is kept open for as long
    # fetching
    lookahead: int = 32  # blocks of one fetch that are wanted at once
    window: int = 8  # blocks that one peer is asked for at once, on the longest path
    window_step_s: float = 0.025  # one block more for every so many seconds of round trip
    have_timeout_s: float = 3.0
    block_timeout_s: float = 10.0  # a peer that owes us a block and sends none for so long has stalled
    patience_s: float = 0.5  # then an idle peer is asked, too, for what another owes us
    missing_timeout_s: float = 10.0  # the search for somebody who has a block
    again_s: float = 1.0  # such a search asks around once more after so long
    bench_s: float = 30.0  # how long a peer that failed us is left alone
    retry_s: float = 2.0  # the same for one that went away, or was slower than others
    unproven_retry_s: float = 8.0  # the same for one that was slower and has brought nothing yet
    peers_per_search: int = 64
    broken_promises: int = 8  # blocks in a row that a peer said it has and then has not
    links_base: int = 100_000  # links of one tree: so many, and one more for every 64 KiB that are allowed


LINK_ALLOWANCE_BYTES: Final = 64 * _KIB
