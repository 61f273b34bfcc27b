"""The file block store: whole blocks or none, whoever else writes and whatever the disk does."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES
from openlora.p2p.errors import BlockMissing, MalformedBlock, OverBudget, StoreFull

BLOCK = b"a block"
CID = Cid.of(Codec.RAW, BLOCK)


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "blocks")


def block_file(tmp_path: Path) -> Path:
    name = str(CID)
    return tmp_path / "blocks" / name[-3:-1] / name


def test_a_block_comes_back(store: BlockStore, tmp_path: Path) -> None:
    assert not store.has(CID)
    store.put(CID, BLOCK)
    store.put(CID, BLOCK)
    assert store.has(CID)
    assert store.get(CID) == BLOCK
    assert block_file(tmp_path).read_bytes() == BLOCK
    assert BlockStore(tmp_path / "blocks").get(CID) == BLOCK


def test_missing_and_deleted_blocks(store: BlockStore) -> None:
    with pytest.raises(BlockMissing):
        store.get(CID)
    store.put(CID, BLOCK)
    store.delete(CID)
    store.delete(CID)
    with pytest.raises(BlockMissing):
        store.get(CID)


def test_a_block_under_a_wrong_name_is_refused(store: BlockStore) -> None:
    with pytest.raises(MalformedBlock):
        store.put(CID, b"another block")
    assert not store.has(CID)


def test_a_block_above_the_limit_is_refused(store: BlockStore) -> None:
    large = bytes(MAX_BLOCK_BYTES + 1)
    with pytest.raises(OverBudget):
        store.put(Cid.of(Codec.RAW, large), large)


@pytest.mark.parametrize("damaged", [b"", b"a blocK", b"a block and more", bytes(MAX_BLOCK_BYTES + 2)])
def test_a_damaged_block_counts_as_missing(store: BlockStore, tmp_path: Path, damaged: bytes) -> None:
    store.put(CID, BLOCK)
    block_file(tmp_path).write_bytes(damaged)
    with pytest.raises(BlockMissing, match="damaged"):
        store.get(CID)
    store.put(CID, BLOCK)
    assert store.get(CID) == BLOCK


def test_listing_and_size(store: BlockStore, tmp_path: Path) -> None:
    blocks = {Cid.of(codec, bytes([n])): bytes([n]) for n in range(50) for codec in Codec}
    for cid, block in blocks.items():
        store.put(cid, block)
    (tmp_path / "blocks" / "aa").mkdir(exist_ok=True)
    (tmp_path / "blocks" / "aa" / "stray").write_text("none of ours")
    assert set(store.cids()) == set(blocks)
    assert store.size() == 100


def test_unfinished_files_are_swept_once_abandoned(store: BlockStore, tmp_path: Path) -> None:
    fresh, abandoned = (tmp_path / "blocks" / "unfinished" / name for name in ("fresh", "abandoned"))
    fresh.touch()
    abandoned.touch()
    os.utime(abandoned, (1, 1))
    BlockStore(tmp_path / "blocks")
    assert fresh.exists()
    assert not abandoned.exists()


def test_a_failed_put_leaves_nothing(store: BlockStore, tmp_path: Path) -> None:
    shard = block_file(tmp_path).parent
    shard.write_text("a file where the shard should be")
    with pytest.raises(OSError, match="exists"):
        store.put(CID, BLOCK)
    assert list((tmp_path / "blocks" / "unfinished").iterdir()) == []


def numbered(n: int, size: int = 100) -> tuple[Cid, bytes]:
    block = n.to_bytes(4, "big") * (size // 4)
    return Cid.of(Codec.RAW, block), block


def test_a_full_store_takes_no_more_until_there_is_room(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, max_bytes=250)
    store.put(*numbered(1))
    store.put(*numbered(2))
    with pytest.raises(StoreFull, match="200 bytes; 250"):
        store.put(*numbered(3))
    store.put(*numbered(1))  # present: no new bytes
    assert store.size() == 200
    store.delete(numbered(1)[0])
    store.put(*numbered(3))
    assert store.size() == 200
    assert sorted(store.cids()) == sorted(numbered(n)[0] for n in (2, 3))


def test_what_lies_in_the_store_counts_from_the_start(store: BlockStore, tmp_path: Path) -> None:
    store.put(*numbered(1))
    with pytest.raises(StoreFull):
        BlockStore(tmp_path / "blocks", max_bytes=150).put(*numbered(2))


def test_room_that_another_process_made_is_seen(tmp_path: Path) -> None:
    seconds = iter(range(100))
    store, other = BlockStore(tmp_path, max_bytes=100, clock=lambda: next(seconds)), BlockStore(tmp_path)
    store.put(*numbered(1))
    other.delete(numbered(1)[0])
    store.put(*numbered(2))
    assert store.size() == 100


def test_a_failed_or_damaged_block_does_not_count(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, max_bytes=100)
    cid, block = numbered(1)
    shard = tmp_path / str(cid)[-3:-1]
    shard.touch()
    with pytest.raises(OSError, match="exists"):
        store.put(cid, block)
    shard.unlink()
    store.put(cid, block)
    (shard / str(cid)).write_bytes(bytes(100))
    with pytest.raises(BlockMissing):
        store.get(cid)
    assert store.size() == 0
    store.put(cid, block)


def test_threads_do_not_pass_the_quota_together(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, max_bytes=1000)

    def put(n: int) -> bool:
        try:
            store.put(*numbered(n))
        except StoreFull:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(put, range(40))) == 10
    assert store.size() == 1000


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid, Codec
store = BlockStore(Path(sys.argv[1]))
for n in range(200):
    block = n.to_bytes(4, "big") * 1000
    cid = Cid.of(Codec.RAW, block)
    store.put(cid, block)
    assert store.get(cid) == block
"""


@pytest.mark.slow
def test_several_processes_write_the_same_blocks(store: BlockStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "blocks")]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert store.size() == 200 * 4000
    assert all(cid.matches(store.get(cid)) for cid in store.cids())
