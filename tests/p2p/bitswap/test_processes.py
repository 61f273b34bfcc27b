"""Fetching between processes: through SIGKILLs, and past peers that lie and stall."""

import random
import time
from pathlib import Path

import pytest

from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from tests.p2p.bitswap.peers import add_random_folder
from tests.p2p.bitswap.processes import PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]

MIB = 1 << 20
SIZES = {"model": 19 * MIB, "sub/other": MIB + 1, "config.json": 700}


def publish(tmp_path: Path, name: str) -> tuple[Cid, set[Cid]]:
    store = BlockStore(tmp_path / name / "blocks")
    root = add_random_folder(store, tmp_path / "folder", SIZES)
    return root, set(store.cids())


def blocks_of(tmp_path: Path, name: str) -> set[Cid]:
    return set(BlockStore(tmp_path / name / "blocks").cids())


def test_a_fetch_that_is_killed_ten_times_refetches_one_block_each(tmp_path: Path) -> None:
    root, blocks = publish(tmp_path, "provider")
    rng, have = random.Random(1), 0
    with PeerProcess(tmp_path / "provider") as provider:
        for _ in range(10):
            with PeerProcess(tmp_path / "fetcher") as fetcher:
                fetcher.ask(f"connect {provider.hello['address']}")
                fetcher.tell(f"fetch {root}")
                wait_for_blocks(tmp_path, have + rng.randrange(1, 7))
                time.sleep(rng.uniform(0.0, 0.01))  # anywhere within the next block
            have = len(blocks_of(tmp_path, "fetcher"))
        with PeerProcess(tmp_path / "fetcher") as fetcher:
            fetcher.ask(f"connect {provider.hello['address']}")
            assert fetcher.ask(f"fetch {root}")["blocks"] == len(blocks)
        served = provider.ask("counters")["served"]
    assert blocks_of(tmp_path, "fetcher") == blocks
    assert have < len(blocks)
    assert served - len(blocks) <= 10
    print(f"{have} of {len(blocks)} blocks before the last kill, {served - len(blocks)} served twice")


def wait_for_blocks(tmp_path: Path, count: int) -> None:
    deadline = time.monotonic() + 20.0
    while len(blocks_of(tmp_path, "fetcher")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_liar_and_a_staller_cost_only_themselves(tmp_path: Path) -> None:
    root, blocks = publish(tmp_path, "provider")
    with (
        PeerProcess(tmp_path / "provider") as provider,
        PeerProcess(tmp_path / "liar", "liar") as liar,
        PeerProcess(tmp_path / "staller", "staller") as staller,
    ):
        alone = fetch_from(tmp_path, "alone", root, [provider])
        among = fetch_from(tmp_path, "among", root, [liar, staller, provider])
    assert blocks_of(tmp_path, "alone") == blocks_of(tmp_path, "among") == blocks
    assert among < 2 * alone + 1.5
    print(f"honest only: {alone:.2f} s; among a liar and a staller: {among:.2f} s")


def fetch_from(tmp_path: Path, name: str, root: Cid, providers: list[PeerProcess]) -> float:
    with PeerProcess(tmp_path / name) as fetcher:
        for provider in providers:
            fetcher.ask(f"connect {provider.hello['address']}")
        return float(fetcher.ask(f"fetch {root}")["seconds"])
