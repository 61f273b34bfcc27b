"""Every error of the peer-to-peer library, as one tree.

P2PError
└── ContentRefused      bytes from a stranger that are not what they should be
    ├── MalformedCid    text or bytes that are no CID of ours
    ├── MalformedBlock  a block that does not match its CID, or is no canonical dag-pb or UnixFS
    └── OverBudget      well-formed, but larger, deeper or more than the caller allows
BlockMissing is a P2PError too: the store does not have the block.
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
    """The block is not in the store."""
