"""What a tree comes to is known from its links, however often it names the same block."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from openlora.p2p.bitswap.tree import Content, Tree
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link
from openlora.p2p.content.unixfs import MAX_DEPTH, DirectoryNode, FileNode
from openlora.p2p.errors import ContentRefused, MalformedBlock, OverBudget

PLENTY = 1 << 40
NODE_BYTES = 50


@dataclass
class Shape:
    """A made-up tree: contents by name, and the sums that the tree must find, counted the slow way."""

    contents: dict[str, Content] = field(default_factory=dict)

    def raw(self, name: str, size: int) -> str:
        self.contents[name] = size
        return name

    def file(self, name: str, *parts: str) -> str:
        sized = tuple((cid_of(part), self.file_bytes(part)) for part in parts)
        self.contents[name] = FileNode(sum(size for _, size in sized), sized)
        return name

    def folder(self, name: str, *children: str) -> str:
        links = tuple(Link(cid_of(child), f"{index:04}", 0) for index, child in enumerate(children))
        self.contents[name] = DirectoryNode(links)
        return name

    def file_bytes(self, name: str) -> int:
        content = self.contents[name]
        assert not isinstance(content, DirectoryNode)
        return content if isinstance(content, int) else content.size

    def walk(self, root: str, *, max_bytes: int = PLENTY, max_links: int = 100_000, shuffle: int | None = None) -> Tree:
        """Feeds the tree until it is complete or refused."""
        by_cid = {cid_of(name): name for name in self.contents}
        tree = Tree(cid_of(root), max_bytes=max_bytes, max_links=max_links)
        known = [cid_of(root)]
        while known:
            if shuffle is not None:
                random.Random(shuffle + len(known)).shuffle(known)
            cid = known.pop()
            content = self.contents[by_cid[cid]]
            known += tree.add(cid, content if isinstance(content, int) else NODE_BYTES, content)
        assert tree.complete
        return tree

    def traversed(self, name: str) -> int:
        content = self.contents[name]
        by_cid = {cid_of(name): name for name in self.contents}
        if isinstance(content, int):
            return content
        cids = [cid for cid, _ in content.parts] if isinstance(content, FileNode) else [e.cid for e in content.entries]
        return NODE_BYTES + sum(self.traversed(by_cid[cid]) for cid in cids)


def cid_of(name: str) -> Cid:
    return Cid.of(Codec.RAW, name.encode())


def bomb_of_folders(levels: int, links: int) -> Shape:
    shape = Shape()
    below = shape.raw("leaf", 10)
    for level in range(levels):
        below = shape.folder(f"level {level}", *[below] * links)
    return shape


def bomb_of_files(levels: int, links: int) -> Shape:
    shape = Shape()
    below = shape.raw("leaf", 10)
    for level in range(levels):
        below = shape.file(f"level {level}", *[below] * links)
    return shape


@pytest.mark.parametrize("bomb", [bomb_of_folders, bomb_of_files])
def test_a_tree_that_expands_without_end_is_refused_in_milliseconds(bomb: Callable[[int, int], Shape]) -> None:
    shape = bomb(8, 174)
    start = time.perf_counter()
    with pytest.raises(OverBudget):
        shape.walk("level 7")
    assert time.perf_counter() - start < 0.5


def test_a_file_that_declares_too_much_is_refused_before_its_parts_are_known() -> None:
    shape = bomb_of_files(8, 174)
    tree = Tree(cid_of("level 7"), max_bytes=PLENTY, max_links=1000)
    with pytest.raises(OverBudget, match="allowed"):
        tree.add(cid_of("level 7"), NODE_BYTES, shape.contents["level 7"])


def test_files_that_declare_too_much_together_are_refused_before_their_parts_are_known() -> None:
    shape = Shape()
    leaves = [shape.raw(f"leaf {n}", 100 + n) for n in range(4)]
    shape.folder("root", shape.file("a", *leaves[:2]), shape.file("b", *leaves[2:]))
    tree = Tree(cid_of("root"), max_bytes=300, max_links=1000)
    tree.add(cid_of("root"), NODE_BYTES, shape.contents["root"])
    tree.add(cid_of("a"), NODE_BYTES, shape.contents["a"])
    with pytest.raises(OverBudget, match="allowed"):
        tree.add(cid_of("b"), NODE_BYTES, shape.contents["b"])


def random_shape(seed: int) -> tuple[Shape, str]:
    """Six layers that name each other's parts freely."""
    rng, shape = random.Random(seed), Shape()
    files = [shape.raw(f"raw {n}", rng.randrange(1, 100)) for n in range(5)]
    for n in range(6):
        files.append(shape.file(f"file {n}", *rng.choices(files, k=rng.randrange(1, 4))))
    below = list(files)
    for n in range(4):
        below.append(shape.folder(f"folder {n}", *rng.choices(below, k=rng.randrange(4))))
    return shape, shape.folder("root", *rng.choices(below, k=4), below[-1])


@pytest.mark.parametrize("seed", range(20))
def test_totals_are_those_of_a_walk_in_any_order(seed: int) -> None:
    shape, root = random_shape(seed)
    total = shape.traversed(root)
    for order in (None, 1, 2):
        tree = shape.walk(root, max_bytes=total, shuffle=order)
        assert tree.bytes <= total
        with pytest.raises(OverBudget):
            shape.walk(root, max_bytes=total - 1, shuffle=order)


def test_distinct_blocks_are_counted_once() -> None:
    shape = Shape()
    shape.folder("root", *[shape.raw("leaf", 10)] * 3)
    tree = shape.walk("root", max_bytes=NODE_BYTES + 30)
    assert (tree.blocks, tree.bytes) == (2, NODE_BYTES + 10)


@pytest.mark.parametrize("order", [None, 3, 7])
def test_depth(order: int | None) -> None:
    shape = bomb_of_folders(MAX_DEPTH - 1, 1)
    shape.walk(f"level {MAX_DEPTH - 2}", shuffle=order)
    shape.folder("too deep", "leaf", f"level {MAX_DEPTH - 2}")
    with pytest.raises(OverBudget, match="nested"):
        shape.walk("too deep", shuffle=order)


def test_a_block_that_is_named_early_and_deep_is_as_deep_as_its_longest_path() -> None:
    shape = Shape()
    shape.folder("shared 0", shape.raw("leaf", 1))
    for n in range(1, 20):
        shape.folder(f"shared {n}", f"shared {n - 1}")
    chain = "shared 19"
    for n in range(20):
        chain = shape.folder(f"chain {n}", chain)
    shape.folder("root", "shared 19", chain)
    for order in (None, 1, 2, 3):
        with pytest.raises(OverBudget, match="nested"):
            shape.walk("root", shuffle=order)


def test_entries_count_each_time_they_are_named() -> None:
    with pytest.raises(OverBudget, match="files and folders"):
        bomb_of_folders(2, 100).walk("level 1")
    assert bomb_of_folders(2, 99).walk("level 1").blocks == 3


def test_links_are_bounded() -> None:
    shape = Shape()
    shape.folder("root", *[shape.raw(f"leaf {n}", 1) for n in range(11)])
    with pytest.raises(OverBudget, match="links"):
        shape.walk("root", max_links=10)


@pytest.mark.parametrize("part", ["short", "folder", "file"])
def test_a_part_must_be_what_its_parent_says(part: str) -> None:
    shape = Shape()
    shape.raw("short", 9)
    shape.folder("folder", "short")
    shape.file("file", "short", "short")
    shape.contents["root"] = FileNode(10, ((cid_of(part), 10),))
    for order in (None, 1):
        with pytest.raises(MalformedBlock, match="parent says"):
            shape.walk("root", shuffle=order)


def test_refusals_are_content_refused() -> None:
    assert issubclass(OverBudget, ContentRefused)
    assert issubclass(MalformedBlock, ContentRefused)
