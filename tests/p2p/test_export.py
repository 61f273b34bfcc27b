"""From blocks to a folder: what goes in comes out, and hostile trees cost little."""

import time
from pathlib import Path

import pytest

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, encode_fields, encode_node
from openlora.p2p.content.export import Budget, export_directory, run_export
from openlora.p2p.content.unixfs import CHUNK_BYTES, MAX_BLOCK_BYTES, add_directory
from openlora.p2p.errors import BlockMissing, ContentRefused, MalformedBlock, OverBudget

MIB = 1 << 20


class Blocks:
    """Blocks in memory, as an honest or a hostile network would serve them."""

    def __init__(self) -> None:
        self.by_cid: dict[Cid, bytes] = {}
        self.served = 0

    def put(self, cid: Cid, block: bytes) -> None:
        self.by_cid[cid] = block

    def get(self, cid: Cid) -> bytes:
        self.served += 1
        if cid not in self.by_cid:
            raise BlockMissing(str(cid))
        return self.by_cid[cid]

    def raw(self, block: bytes) -> Cid:
        return self._add(Codec.RAW, block)

    def folder(self, **entries: Cid) -> Cid:
        links = tuple(Link(cid, name, 1) for name, cid in sorted(entries.items()))
        return self._add(Codec.DAG_PB, encode_node(Node(links, b"\x08\x01")))

    def file(self, *parts: tuple[Cid, int]) -> Cid:
        data = encode_fields([(1, 2), (3, sum(size for _, size in parts)), *((4, size) for _, size in parts)])
        return self._add(Codec.DAG_PB, encode_node(Node(tuple(Link(cid, "", 1) for cid, _ in parts), data)))

    def _add(self, codec: Codec, block: bytes) -> Cid:
        cid = Cid.of(codec, block)
        self.by_cid[cid] = block
        return cid


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def export(blocks: Blocks, root: Cid, destination: Path, budget: Budget | None = None) -> None:
    destination.mkdir()
    run_export(export_directory(root, destination, budget or Budget(64 * MIB)), blocks.get)


def test_what_goes_in_comes_out(blocks: Blocks, tmp_path: Path) -> None:
    source = {"empty": b"", "small": b"x", "large": bytes(range(256)) * (180 * CHUNK_BYTES // 256) + b"!", "d/e": b"y"}
    for name, content in source.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "nothing").mkdir()
    export(blocks, add_directory(tmp_path / "in", blocks.put), tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == source
    assert found["nothing"].is_dir()


def test_a_missing_block_is_the_sources_own_error(blocks: Blocks, tmp_path: Path) -> None:
    root = blocks.folder(a=Cid.of(Codec.RAW, b"nowhere"))
    with pytest.raises(BlockMissing):
        export(blocks, root, tmp_path / "out")


def test_a_block_that_is_not_what_was_asked_for(blocks: Blocks, tmp_path: Path) -> None:
    leaf = Cid.of(Codec.RAW, b"right")
    blocks.by_cid[leaf] = b"wrong"
    with pytest.raises(MalformedBlock, match="does not match"):
        export(blocks, blocks.folder(a=leaf), tmp_path / "out")
    assert (tmp_path / "out" / "a").exists() is False


@pytest.mark.parametrize("wrong", [0, 2, 2**63])
def test_a_part_of_another_size_than_stated(blocks: Blocks, tmp_path: Path, wrong: int) -> None:
    file = blocks.file((blocks.raw(b"x"), wrong))
    with pytest.raises(ContentRefused):
        export(blocks, blocks.folder(a=file), tmp_path / "out")


def test_a_file_whose_part_is_a_folder(blocks: Blocks, tmp_path: Path) -> None:
    file = blocks.file((blocks.folder(), 1))
    with pytest.raises(MalformedBlock, match="is not the 1 bytes"):
        export(blocks, blocks.folder(a=file), tmp_path / "out")


def test_a_root_that_is_a_file(blocks: Blocks, tmp_path: Path) -> None:
    for number, root in enumerate((blocks.raw(b"x"), blocks.file((blocks.raw(b"x"), 1)))):
        with pytest.raises(MalformedBlock, match="not a folder"):
            export(blocks, root, tmp_path / f"out{number}")


def test_a_block_above_the_limit(blocks: Blocks, tmp_path: Path) -> None:
    with pytest.raises(OverBudget, match="limit"):
        export(blocks, blocks.folder(a=blocks.raw(bytes(MAX_BLOCK_BYTES + 1))), tmp_path / "out")


def test_the_budget_is_exact(blocks: Blocks, tmp_path: Path) -> None:
    root = blocks.folder(a=blocks.raw(b"x" * 100))
    needed = len(blocks.by_cid[root]) + 100
    export(blocks, root, tmp_path / "enough", Budget(needed))
    with pytest.raises(OverBudget, match="larger"):
        export(blocks, root, tmp_path / "short", Budget(needed - 1))


def test_a_file_too_large_is_refused_before_its_parts_are_fetched(blocks: Blocks, tmp_path: Path) -> None:
    chunk = blocks.raw(bytes(CHUNK_BYTES))
    root = blocks.folder(a=blocks.file(*[(chunk, CHUNK_BYTES)] * 174))
    with pytest.raises(OverBudget):
        export(blocks, root, tmp_path / "out", Budget(MIB))
    assert blocks.served == 2


def test_a_tree_that_expands_as_files(blocks: Blocks, tmp_path: Path) -> None:
    """Eight levels of 174 links to one child: 10¹⁷ bytes of file behind nine small blocks, every hash correct."""
    child, size = blocks.raw(b"x"), 1
    for _ in range(8):
        child, size = blocks.file(*[(child, size)] * 174), size * 174
    with pytest.raises(OverBudget):
        export(blocks, blocks.folder(bomb=child), tmp_path / "out")
    assert blocks.served == 2


@pytest.mark.parametrize("leaf", [b"", b"x" * 1000])
def test_a_tree_that_expands_as_folders(blocks: Blocks, tmp_path: Path, leaf: bytes) -> None:
    child = blocks.raw(leaf)
    for _ in range(8):
        child = blocks.folder(**{f"{number:03}": child for number in range(174)})
    started = time.perf_counter()
    with pytest.raises(OverBudget):
        export(blocks, child, tmp_path / "out", Budget(MIB, entries_left=100))
    assert time.perf_counter() - started < 2
    assert blocks.served < 120


def test_a_deep_chain(blocks: Blocks, tmp_path: Path) -> None:
    folder, file = blocks.folder(), blocks.raw(b"x")
    for _ in range(2000):
        folder, file = blocks.folder(a=folder), blocks.file((file, 1))
    for number, root in enumerate((folder, blocks.folder(a=file))):
        with pytest.raises(OverBudget, match="deep"):
            export(blocks, root, tmp_path / f"out{number}")


def test_a_name_that_leads_out_of_the_folder(blocks: Blocks, tmp_path: Path) -> None:
    root = blocks.folder(**{"../escaped": blocks.raw(b"x")})
    with pytest.raises(MalformedBlock, match="no plain file name"):
        export(blocks, root, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
