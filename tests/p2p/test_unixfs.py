"""UnixFS: the CIDs of `ipfs add --cid-version=1 --raw-leaves`, by an independent implementation and by hand."""

import os
from io import BytesIO
from pathlib import Path

import pytest
from aleph_cid import CidHasher, hash_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, encode_fields, encode_node
from openlora.p2p.content.unixfs import (
    CHUNK_BYTES,
    MAX_BLOCK_BYTES,
    DirectoryNode,
    FileNode,
    add_directory,
    add_file,
    parse_node,
)
from openlora.p2p.errors import ContentRefused, OverBudget

LEAF = Cid.of(Codec.RAW, b"x")


def ignore(cid: Cid, block: bytes) -> None:
    """Blocks that nobody wants."""


def oracle(data: bytes) -> str:
    hasher = CidHasher.for_ipfs_v1_raw_leaves()
    hasher.update(data)
    return hasher.finalize()


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 174 * CHUNK_BYTES, 174 * CHUNK_BYTES + 1],
)
def test_files_equal_the_oracle(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    assert str(add_file(BytesIO(data[:size]), ignore)) == oracle(data[:size])


def test_a_file_of_three_levels_equals_the_oracle() -> None:
    data = bytes(350 * CHUNK_BYTES - 7)
    assert str(add_file(BytesIO(data), ignore)) == oracle(data)


def test_a_folder_equals_the_oracle(tmp_path: Path) -> None:
    write(tmp_path, {"b": b"2", "a": b"1", "é": b"", "a.b": bytes(CHUNK_BYTES + 1), "deep/er/c": b"3", ".hidden": b""})
    assert str(add_directory(tmp_path, ignore)) == hash_folder(tmp_path)


characters = st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="/")
file_names = st.text(characters, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))


@given(
    st.dictionaries(
        file_names.filter(lambda name: "/" not in name and name not in (".", "..")), st.binary(), min_size=1
    )
)
@settings(max_examples=30, deadline=None)
def test_any_folder_equals_the_oracle(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("folder")
    write(folder, files)
    assert str(add_directory(folder, ignore)) == hash_folder(folder)


def test_a_folder_by_hand(tmp_path: Path) -> None:
    """One file "a" of the byte "x": Hash · Name · Tsize 1, then Data {Type 1}."""
    write(tmp_path, {"a": b"x"})
    block = b"\x12\x2b\x0a\x24" + LEAF.encode() + b"\x12\x01a\x18\x01" + b"\x0a\x02\x08\x01"
    assert add_directory(tmp_path, ignore) == Cid.of(Codec.DAG_PB, block)
    assert parse_node(block) == DirectoryNode((Link(LEAF, "a", 1),))


def test_children_come_before_their_parents(tmp_path: Path) -> None:
    write(tmp_path, {"a": bytes(CHUNK_BYTES) + b"x", "b/c": b"y"})
    blocks: dict[Cid, bytes] = {}

    def put(cid: Cid, block: bytes) -> None:
        if cid.codec == Codec.DAG_PB:
            node = parse_node(block)
            children = node.parts if isinstance(node, FileNode) else [(link.cid, 0) for link in node.entries]
            assert all(child in blocks for child, _ in children)
        blocks[cid] = block

    assert add_directory(tmp_path, put) == list(blocks)[-1]
    assert all(cid.matches(block) for cid, block in blocks.items())


def test_what_cannot_be_published(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        add_directory(tmp_path, ignore)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContentRefused, match="neither a plain file"):
        add_directory(tmp_path, ignore)


def test_a_folder_too_deep_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath(*["d"] * 32).mkdir(parents=True)
    with pytest.raises(OverBudget, match="deep"):
        add_directory(tmp_path, ignore)


# ---- blocks from strangers ------------------------------------------------------------------------------------------


def folder(*names: str) -> bytes:
    return encode_node(Node(tuple(Link(LEAF, name, 1) for name in names), b"\x08\x01"))


def file_node(sizes: list[int], *, size: int | None = None, links: int | None = None, name: str = "") -> bytes:
    total = sum(sizes) if size is None else size
    data = encode_fields([(1, 2), (3, total), *((4, part) for part in sizes)])
    return encode_node(Node((Link(LEAF, name, 1),) * (len(sizes) if links is None else links), data))


def test_a_file_node_is_read() -> None:
    assert parse_node(file_node([1, 1])) == FileNode(2, ((LEAF, 1), (LEAF, 1)))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "a\nb", "\x1b[2J", "x" * 256, "é" * 128]
)
def test_names_that_are_no_plain_file_names(name: str) -> None:
    with pytest.raises(ContentRefused, match=r"file name|unprintable"):
        parse_node(folder(name))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (folder("a", "a"), "sorted"),
        (folder("b", "a"), "sorted"),
        (file_node([1, 1], size=3), "add up"),
        (file_node([1, 1], size=2**64 - 1), "add up"),
        (file_node([1, 1], links=1), "parts"),
        (file_node([1, 1], links=3), "parts"),
        (file_node([]), "parts"),
        (file_node([1] * 175), "parts"),
        (file_node([1, 0]), "not empty"),
        (file_node([1, 1], name="a"), "no names"),
        (encode_node(Node((), b"")), "neither"),
        (encode_node(Node((), b"\x08\x00")), "neither"),  # raw
        (encode_node(Node((), b"\x08\x04\x12\x01x")), "neither"),  # symbolic link
        (encode_node(Node((), b"\x08\x05\x12\x01\x00")), "neither"),  # sharded folder
        (encode_node(Node((), b"\x08\x02\x12\x01x\x18\x01")), "neither"),  # inline data
        (encode_node(Node((), b"\x08\x01\x38\xa4\x03")), "neither"),  # a mode
        (encode_node(Node((), b"\x08\x81\x00")), "shortest"),
        (encode_node(Node((), b"\x08")), "truncated"),
        (bytes(MAX_BLOCK_BYTES + 1), "limit"),
    ],
)
def test_blocks_that_are_refused(block: bytes, reason: str) -> None:
    with pytest.raises(ContentRefused, match=reason):
        parse_node(block)


@given(st.binary(max_size=80))
def test_any_data_is_read_or_refused(data: bytes) -> None:
    try:
        parse_node(encode_node(Node((Link(LEAF, "", 1),), data)))
    except ContentRefused:
        return


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
