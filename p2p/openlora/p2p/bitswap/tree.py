"""The bookkeeping of one fetch: which blocks of a tree are known, and what the whole of it would come to.

A tree whose nodes name one child many times expands without end though it has few blocks. So every block knows the
total of what lies below it, each time it is named; totals are added up from the leaves, once for each link. A tree is
refused as soon as any part of it is known to be too much.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from openlora.p2p.content.cid import Cid
from openlora.p2p.content.export import MAX_ENTRIES
from openlora.p2p.content.unixfs import MAX_DEPTH, DirectoryNode, FileNode
from openlora.p2p.errors import MalformedBlock, OverBudget

Content = int | FileNode | DirectoryNode  # of a block: the bytes of a raw one, or what a dag-pb node says


@dataclass(slots=True)
class _Part:
    """One distinct block, and the tree below it. Totals count what is known so far."""

    depth: int  # blocks on the first path found from the root to here, both included
    whole: bool  # named by a folder, or the root: not a part of a file
    parents: "list[tuple[_Part, int, int | None]]" = field(default_factory=list)  # (who, how often, its size there)
    height: int = 1
    missing: int = 0  # distinct links whose trees are not complete
    total_bytes: int = 0
    entries: int = 0
    file_bytes: int | None = None  # None: a folder
    arrived: bool = False


class Tree:
    """What is known of the tree under `root`. `add` is given every block once, in any order after its parent."""

    def __init__(self, root: Cid, *, max_bytes: int, max_links: int) -> None:
        self._max_bytes, self._links_left = max_bytes, max_links
        self._parts = {root: _Part(depth=1, whole=True)}
        self._root = self._parts[root]
        self._declared_bytes = 0  # of distinct files: no more than what the tree comes to
        self.blocks = 0
        self.bytes = 0

    @property
    def complete(self) -> bool:
        return self._root.arrived and not self._root.missing

    def add(self, cid: Cid, block_bytes: int, content: Content) -> list[Cid]:
        """Returns the blocks that are known of from now on. Raises ContentRefused when the tree must not be used."""
        part = self._parts[cid]
        part.arrived = True
        self.blocks += 1
        self.bytes += block_bytes
        self._spend(part, block_bytes, 0)
        if self.bytes > self._max_bytes:
            raise OverBudget("the content is larger than allowed")
        part.file_bytes = _file_bytes(content)
        if part.whole and part.file_bytes is not None:
            self._declared_bytes += part.file_bytes
            if self._declared_bytes > self._max_bytes:
                raise OverBudget(f"files of {self._declared_bytes} bytes; {self._max_bytes} are allowed")
        if isinstance(content, DirectoryNode):
            self._spend(part, 0, len(content.entries))
        discovered = self._link(part, _links(content))
        if not part.missing:
            self._complete(part)
        return discovered

    def _link(self, part: _Part, links: "Counter[tuple[Cid, int | None]]") -> list[Cid]:
        self._links_left -= len(links)
        if self._links_left < 0:
            raise OverBudget("the content has more links than its size allows")
        discovered = []
        for (cid, size), count in links.items():
            child = self._parts.get(cid)
            if child is None:
                child = self._parts[cid] = _Part(part.depth + 1, whole=size is None)
                discovered.append(cid)
            if max(child.depth, part.depth + 1) > MAX_DEPTH:
                raise OverBudget(f"the content is nested more than {MAX_DEPTH} deep")
            if child.arrived and not child.missing:
                self._join(part, child, count, size)
            else:
                part.missing += 1
                child.parents.append((part, count, size))
        return discovered

    def _complete(self, part: _Part) -> None:
        """The tree below `part` is whole; so may be those above it."""
        completed = [part]
        while completed:
            child = completed.pop()
            for parent, count, size in child.parents:
                self._join(parent, child, count, size)
                parent.missing -= 1
                if not parent.missing:
                    completed.append(parent)
            child.parents.clear()

    def _join(self, parent: _Part, child: _Part, count: int, size: int | None) -> None:
        if size is not None and child.file_bytes != size:
            raise MalformedBlock(f"a part is not the {size} bytes of a file that its parent says")
        parent.height = max(parent.height, child.height + 1)
        if parent.height > MAX_DEPTH:
            raise OverBudget(f"the content is nested more than {MAX_DEPTH} deep")
        self._spend(parent, count * child.total_bytes, count * child.entries)

    def _spend(self, part: _Part, more_bytes: int, more_entries: int) -> None:
        part.total_bytes += more_bytes
        part.entries += more_entries
        if part.total_bytes > self._max_bytes:
            raise OverBudget("the content is larger than allowed")
        if part.entries > MAX_ENTRIES:
            raise OverBudget("the content has more files and folders than allowed")


def _file_bytes(content: Content) -> int | None:
    match content:
        case int():
            return content
        case FileNode():
            return content.size
        case DirectoryNode():
            return None


def _links(content: Content) -> "Counter[tuple[Cid, int | None]]":
    """(child, the bytes of a file that it must be, or None if it may be anything), and how often it is named."""
    links: Iterable[tuple[Cid, int | None]] = ()
    if isinstance(content, FileNode):
        links = content.parts
    elif isinstance(content, DirectoryNode):
        links = ((link.cid, None) for link in content.entries)
    return Counter(links)
