"""Files and folders as IPFS blocks, byte for byte as `ipfs add --cid-version=1 --raw-leaves` writes them.

A file of at most 256 KiB is one raw block. A larger one is cut into 256 KiB raw leaves under a balanced tree of dag-pb
nodes with at most 174 links each. A folder is one dag-pb node whose links are sorted by name.

    Data { enum Type = 1; optional bytes Data = 2; optional uint64 filesize = 3; repeated uint64 blocksizes = 4; … }
    (https://github.com/ipfs/specs/blob/main/UNIXFS.md)
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, decode_fields, decode_node, encode_fields, encode_node
from openlora.p2p.errors import ContentRefused, MalformedBlock, OverBudget

CHUNK_BYTES: Final = 256 * 1024
MAX_LINKS: Final = 174
MAX_BLOCK_BYTES: Final = 2 * 1024 * 1024
MAX_DEPTH: Final = 32
MAX_NAME_BYTES: Final = 255
MAX_FOLDER_BYTES: Final = 256 * 1024  # names and CIDs; above it IPFS shards the folder, which we do not
_DIRECTORY, _FILE = 1, 2

Put = Callable[[Cid, bytes], None]


@dataclass(frozen=True, slots=True)
class FileNode:
    """An inner node of a file: its size, and its parts as (CID, bytes of the file below it)."""

    size: int
    parts: tuple[tuple[Cid, int], ...]


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    entries: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class _Tree:
    """A built subtree: its root, the bytes of file below it, and the bytes of all its blocks (Tsize)."""

    cid: Cid
    file_bytes: int
    total_bytes: int


# ---- building -------------------------------------------------------------------------------------------------------


def add_directory(path: Path, put: Put) -> Cid:
    """Give every block of the folder at `path` to `put`, children first, and return the root.

    Hidden files count, as with `ipfs add --hidden`. Raises ContentRefused for symbolic links, special files, a folder
    too large for one block, or one nested too deeply; OSError as the file system does.
    """
    return _add_directory(path, put, MAX_DEPTH).cid


def add_file(file: BinaryIO, put: Put) -> Cid:
    """Give every block of the open file to `put`, children first, and return the root."""
    return _add_file(file, put).cid


def _add_directory(path: Path, put: Put, depth: int) -> _Tree:
    if depth == 0:
        raise OverBudget(f"{path}: nested more than {MAX_DEPTH} deep")
    entries = sorted(path.iterdir(), key=lambda entry: os.fsencode(entry.name))
    links = []
    for entry in entries:
        tree = _add_entry(entry, put, depth - 1)
        links.append(Link(tree.cid, check_name(entry.name), tree.total_bytes))
    if sum(len(link.name.encode()) + len(link.cid.encode()) for link in links) > MAX_FOLDER_BYTES:
        raise OverBudget(f"{path}: too many entries for one folder")
    return _store(links, encode_fields([(1, _DIRECTORY)]), 0, put)


def _add_entry(path: Path, put: Put, depth: int) -> _Tree:
    if stat.S_ISDIR(path.lstat().st_mode):
        return _add_directory(path, put, depth)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ContentRefused(f"{path}: neither a plain file nor a folder")
        return _add_file(file, put)


def _add_file(file: BinaryIO, put: Put) -> _Tree:
    level = [_leaf(file.read(CHUNK_BYTES), put)]
    while chunk := file.read(CHUNK_BYTES):
        level.append(_leaf(chunk, put))
    while len(level) > 1:
        level = [_parent(level[i : i + MAX_LINKS], put) for i in range(0, len(level), MAX_LINKS)]
    return level[0]


def _leaf(chunk: bytes, put: Put) -> _Tree:
    cid = Cid.of(Codec.RAW, chunk)
    put(cid, chunk)
    return _Tree(cid, len(chunk), len(chunk))


def _parent(children: Sequence[_Tree], put: Put) -> _Tree:
    size = sum(child.file_bytes for child in children)
    data = encode_fields([(1, _FILE), (3, size), *((4, child.file_bytes) for child in children)])
    return _store([Link(child.cid, "", child.total_bytes) for child in children], data, size, put)


def _store(links: Sequence[Link], data: bytes, file_bytes: int, put: Put) -> _Tree:
    block = encode_node(Node(tuple(links), data))
    cid = Cid.of(Codec.DAG_PB, block)
    put(cid, block)
    return _Tree(cid, file_bytes, len(block) + sum(link.total_bytes for link in links))


# ---- reading one block ----------------------------------------------------------------------------------------------


def parse_node(block: bytes) -> FileNode | DirectoryNode:
    """What a dag-pb block says, or MalformedBlock / OverBudget.

    Strict: only what `add_file` and `add_directory` write. No sharded folders, symbolic links, inline data, modes or
    times; sizes add up; names are plain, sorted and distinct.
    """
    if len(block) > MAX_BLOCK_BYTES:
        raise OverBudget(f"a block of {len(block)} bytes; the limit is {MAX_BLOCK_BYTES}")
    node = decode_node(block)
    fields = list(decode_fields(node.data))
    if fields == [(1, _DIRECTORY)] and encode_fields(fields) == node.data:
        return _parse_directory(node)
    return _parse_file(node, fields)


def _parse_directory(node: Node) -> DirectoryNode:
    encoded = [check_name(link.name).encode() for link in node.links]
    if any(left >= right for left, right in pairwise(encoded)):
        raise MalformedBlock("UnixFS: folder entries are not sorted and distinct")
    return DirectoryNode(node.links)


def _parse_file(node: Node, fields: list[tuple[int, int | bytes]]) -> FileNode:
    sizes = [value for number, value in fields if number == 4 and isinstance(value, int)]
    size = sum(sizes)
    if encode_fields([(1, _FILE), (3, size), *((4, value) for value in sizes)]) != node.data:
        raise MalformedBlock("UnixFS: neither a plain folder nor a file whose parts add up to its size")
    if len(sizes) != len(node.links) or not 1 <= len(sizes) <= MAX_LINKS:
        raise MalformedBlock(f"UnixFS: a file node needs 1 to {MAX_LINKS} parts, each with its size")
    if 0 in sizes or any(link.name for link in node.links):
        raise MalformedBlock("UnixFS: a file's parts are not empty and have no names")
    return FileNode(size, tuple((link.cid, value) for link, value in zip(node.links, sizes, strict=True)))


def check_name(name: str) -> str:
    """The name, if it is a plain one that stays inside its folder; else MalformedBlock."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise MalformedBlock(f"UnixFS: {name[:80]!a} is no plain file name")
    if not name.isprintable():
        raise MalformedBlock(f"UnixFS: {name[:80]!a} holds unprintable characters")
    return name
