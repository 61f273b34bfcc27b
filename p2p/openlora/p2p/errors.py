"""Every error of the peer-to-peer library, as one tree.

P2PError
├── ContentRefused      bytes from a stranger that are not what they should be
│   ├── MalformedCid    text or bytes that are no CID of ours
│   ├── MalformedBlock  a block that does not match its CID, or is no canonical dag-pb or UnixFS
│   └── OverBudget      well-formed, but larger, deeper or more than the caller allows
├── BlockMissing        neither the store nor any peer that was asked has the block
├── StoreFull           the block store's quota has no room for a block
├── GossipRefused       a gossiped message that is not used and not relayed; carries a code
├── PeerUnreachable     no connection, or the peer does not speak the protocol
└── StreamLost          the peer or the path went away in the middle
    └── StreamRefused   the peer broke a limit, or says that we did; the message says which
"""


class P2PError(Exception):
    """Root of the library's errors."""


class ContentRefused(P2PError):
    """Content that must not be used; the message says why in one sentence."""


class MalformedCid(ContentRefused):
    """Not a CIDv1 of sha2-256 with codec raw or dag-pb, in its one canonical spelling."""


class MalformedBlock(ContentRefused):
    """A block that does not match its CID, or is not canonical dag-pb or UnixFS."""


class OverBudget(ContentRefused):
    """A tree larger, deeper or with more entries than the caller allows."""


class BlockMissing(P2PError):
    """The block is not in the store, nor with any peer that was asked."""


class StoreFull(P2PError):
    """The block store's quota has no room for the block."""


class GossipRefused(P2PError):
    """A gossiped message is not used and not relayed. `code` is stable: it is counted and shown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PeerUnreachable(P2PError):
    """No connection to the peer, or it does not speak the protocol."""


class StreamLost(P2PError):
    """The peer or the path went away in the middle of a conversation."""


class StreamRefused(StreamLost):
    """The peer broke a limit, or says that we did."""
