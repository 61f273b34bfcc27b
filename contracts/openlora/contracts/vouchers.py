"""What a session's receipts come to: the lines that a voucher pays, kept alike by the client and by the node.

A line's `receipts` is the root of a Merkle tree over the receipts' digests in the order in which they were paid.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from openlora.contracts.bindings.sessions import Line
from openlora.typed_data import keccak

MAX_LINES = 12  # recipes of one session, as the contract bounds them


@dataclass(frozen=True, slots=True)
class ReceiptTree:
    """An append-only Merkle tree over digests, of which only the peaks are kept: those of the perfect trees whose sizes
    are the bits of `count`, the largest first.

    Leaves are hashed twice and pairs are sorted, as OpenZeppelin's MerkleProof checks them; a node without a sibling
    goes up as it is.
    """

    count: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, digest: bytes) -> "ReceiptTree":
        node, peaks, size = leaf(digest), list(self.peaks), self.count
        while size & 1:  # two perfect trees of one size become the next larger one
            node = _pair(peaks.pop(), node)
            size >>= 1
        return ReceiptTree(self.count + 1, (*peaks, node))

    @property
    def root(self) -> bytes:
        """32 bytes; zero for a tree without leaves."""
        *rest, root = self.peaks or (bytes(32),)
        for peak in reversed(rest):
            root = _pair(peak, root)
        return root

    def is_well_formed(self) -> bool:
        """Whether there is a peak for each perfect tree; what the root commits to is not known from this alone."""
        return self.count >= 0 and len(self.peaks) == self.count.bit_count() and all(len(p) == 32 for p in self.peaks)


@dataclass(frozen=True, slots=True)
class Charge:
    """A receipt as it counts in a session."""

    recipe_id: int
    fee: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class LineTotal:
    fee: int = 0
    tree: ReceiptTree = field(default_factory=ReceiptTree)


@dataclass(frozen=True, slots=True)
class Account:
    """All receipts of a session that are paid, by recipe."""

    totals: Mapping[int, LineTotal] = field(default_factory=dict)

    @property
    def fee(self) -> int:
        """Token wei of all receipts."""
        return sum(total.fee for total in self.totals.values())

    def charged(self, charges: Iterable[Charge]) -> Self:
        """The account with these receipts added, in this order."""
        totals = dict(self.totals)
        for charge in charges:
            before = totals.get(charge.recipe_id, LineTotal())
            totals[charge.recipe_id] = LineTotal(before.fee + charge.fee, before.tree.append(charge.digest))
        return type(self)(totals)

    def lines(self) -> Sequence[Line]:
        """As a voucher commits to them: ascending by recipe."""
        return [Line(recipe, total.fee, total.tree.root) for recipe, total in sorted(self.totals.items())]


def leaf(digest: bytes) -> bytes:
    """keccak256(keccak256(abi.encode(digest)))"""
    return keccak(keccak(digest))


def proof(digests: Sequence[bytes], index: int) -> list[bytes]:
    """What shows, with MerkleProof.verify, that `digests[index]` is under the root of the tree of `digests`."""
    level, path = [leaf(digest) for digest in digests], []
    while len(level) > 1:
        if (sibling := index ^ 1) < len(level):
            path.append(level[sibling])
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [_pair(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        index >>= 1
    return path


def verified(digest: bytes, path: Iterable[bytes], root: bytes) -> bool:
    """MerkleProof.verify of a receipt's digest."""
    node = leaf(digest)
    for sibling in path:
        node = _pair(node, sibling)
    return node == root


def _pair(one: bytes, other: bytes) -> bytes:
    return keccak(min(one, other) + max(one, other))
