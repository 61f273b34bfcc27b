"""From blocks to a folder on disk, within a budget, without any network input of its own.

`export_directory` is a generator: it yields the CID that it needs next and is sent that block, so that one strict
traversal serves a local store and a network, under any event loop.
"""

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES, MAX_DEPTH, DirectoryNode, FileNode, parse_node
from openlora.p2p.errors import MalformedBlock, OverBudget

MAX_ENTRIES: Final = 10_000

Export = Generator[Cid, bytes, None]
NodeOf = Generator[Cid, bytes, bytes | FileNode | DirectoryNode]


@dataclass(slots=True)
class Budget:
    """What is left to spend on a tree: bytes of blocks, and files and folders.

    A block counts each time the walk comes by it, so a tiny tree that expands a thousandfold is found out as it
    expands; distinct blocks are fewer than visits, so what is stored is bounded as well.
    """

    bytes_left: int
    entries_left: int = MAX_ENTRIES

    def spend(self, block_bytes: int) -> None:
        self.bytes_left -= block_bytes
        self.require(0)

    def require(self, more_bytes: int) -> None:
        """Refuse now what could not be paid for later."""
        if more_bytes > self.bytes_left:
            raise OverBudget("the content is larger than allowed")

    def enter(self) -> None:
        self.entries_left -= 1
        if self.entries_left < 0:
            raise OverBudget("the content has more files and folders than allowed")


def export_directory(root: Cid, destination: Path, budget: Budget) -> Export:
    """Write the folder `root` into the existing, empty folder `destination`, each file synced to disk.

    Yields each CID needed, in the order of a depth-first walk, and expects its block by `send`. Every block is checked
    against its CID, its size and its place before a byte of it is written. Raises ContentRefused; what has been written
    by then is the caller's to remove.
    """
    node = yield from _node(root, budget, depth=1)
    if not isinstance(node, DirectoryNode):
        raise MalformedBlock(f"{root} is a file, not a folder")
    yield from _write_entries(node, destination, budget, depth=2)


def run_export(export: Export, get: Callable[[Cid], bytes]) -> None:
    """Drive an export from a blocking source of blocks."""
    try:
        wanted = next(export)
        while True:
            wanted = export.send(get(wanted))
    except StopIteration:
        return
    finally:
        export.close()


def _write_entries(folder: DirectoryNode, path: Path, budget: Budget, depth: int) -> Export:
    for link in folder.entries:  # parse_node has checked the names: none leads out of `path`
        budget.enter()
        yield from _write_entry(link.cid, path / link.name, budget, depth)


def _write_entry(cid: Cid, path: Path, budget: Budget, depth: int) -> Export:
    node = yield from _node(cid, budget, depth)
    if isinstance(node, DirectoryNode):
        path.mkdir()
        yield from _write_entries(node, path, budget, depth + 1)
        return
    with path.open("xb") as file:
        yield from _write_content(node, file, budget, depth + 1)
        file.flush()
        os.fsync(file.fileno())


def _write_content(node: bytes | FileNode, file: BinaryIO, budget: Budget, depth: int) -> Export:
    if isinstance(node, bytes):
        file.write(node)
        return
    budget.require(node.size)
    for cid, size in node.parts:
        part = yield from _node(cid, budget, depth)
        if isinstance(part, DirectoryNode) or size != (len(part) if isinstance(part, bytes) else part.size):
            raise MalformedBlock(f"{cid} is not the {size} bytes of a file that its parent says")
        yield from _write_content(part, file, budget, depth + 1)


def _node(cid: Cid, budget: Budget, depth: int) -> NodeOf:
    """The block of `cid`, asked for and checked: the bytes themselves (raw), or what the dag-pb node says."""
    if depth > MAX_DEPTH:
        raise OverBudget(f"the content is nested more than {MAX_DEPTH} deep")
    block = yield cid
    if len(block) > MAX_BLOCK_BYTES:
        raise OverBudget(f"a block of {len(block)} bytes; the limit is {MAX_BLOCK_BYTES}")
    budget.spend(len(block))
    if not cid.matches(block):
        raise MalformedBlock(f"a block does not match its CID {cid}")
    return block if cid.codec == Codec.RAW else parse_node(block)
