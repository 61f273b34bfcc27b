"""Fetching: from one peer and from several, through crashes, and past peers that lie, stall and die."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio

from openlora.p2p.bitswap.fetch import Fetched
from openlora.p2p.bitswap.messages import Message
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, encode_fields, encode_node
from openlora.p2p.content.unixfs import CHUNK_BYTES
from openlora.p2p.errors import BlockMissing, MalformedBlock, OverBudget, StoreFull
from openlora.p2p.memory import MemoryNetwork
from openlora.p2p.network import PeerId
from tests.p2p.bitswap.peers import (
    HASTY,
    PATIENT,
    Peer,
    World,
    add_random_file,
    add_random_folder,
    meet,
    say,
    until,
    world,
)

PLENTY = 1 << 30
FILE_BYTES = 12 * CHUNK_BYTES
Scenario = Callable[[World], Coroutine[Any, Any, None]]


def play(scenario: Scenario, folder: Path) -> None:
    async def main() -> None:
        async with world(folder) as here:
            await scenario(here)

    trio.run(main)


def put_raw(store: BlockStore, block: bytes) -> Cid:
    cid = Cid.of(Codec.RAW, block)
    store.put(cid, block)
    return cid


def put_node(store: BlockStore, node: Node) -> Cid:
    block = encode_node(node)
    cid = Cid.of(Codec.DAG_PB, block)
    store.put(cid, block)
    return cid


def same(one: Peer, other: Peer) -> bool:
    return set(one.store.cids()) == set(other.store.cids())


# ---- honest peers ---------------------------------------------------------------------------------------------------


def test_a_folder_from_one_peer(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", PATIENT)
        sizes = {"adapter_model.safetensors": FILE_BYTES, "sub/small": 10, "empty": 0, "adapter_config.json": 500}
        root = add_random_folder(provider.store, tmp_path / "folder", sizes)
        await meet(fetcher.network, provider.network)
        fetched = await fetcher.bitswap.fetch(root, max_bytes=PLENTY, whole=True)
        assert fetched == Fetched(len(list(provider.store.cids())), provider.store.size())
        assert same(provider, fetcher)
        served, got = provider.bitswap.counters, fetcher.bitswap.counters
        assert (served.served_blocks, served.served_bytes) == (fetched.blocks, fetched.bytes)
        assert (got.fetched_blocks, got.fetched_bytes) == (fetched.blocks, fetched.bytes)

    play(scenario, tmp_path)


def test_a_single_block(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        assert (await fetcher.bitswap.fetch(root, max_bytes=PLENTY, whole=False)).blocks == 1
        assert list(fetcher.store.cids()) == [root]
        with pytest.raises(OverBudget):
            await fetcher.bitswap.fetch(root, max_bytes=100, whole=False)

    play(scenario, tmp_path)


def test_several_peers_serve_at_once(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        providers = [here.peer(f"provider {n}") for n in range(3)]
        roots = {add_random_file(provider.store, 3 * FILE_BYTES) for provider in providers}
        fetcher = here.peer("fetcher", PATIENT)
        await meet(fetcher.network, *(provider.network for provider in providers))
        await fetcher.fetch_whole(*roots)
        assert same(providers[0], fetcher)
        assert all(provider.bitswap.counters.served_blocks >= 3 for provider in providers)
        assert sum(provider.bitswap.counters.served_blocks for provider in providers) == 37

    play(scenario, tmp_path)


def test_peers_that_have_a_part_each(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        one, other, fetcher = here.peer("one"), here.peer("other"), here.peer("fetcher")
        root = add_random_file(one.store, FILE_BYTES)
        add_random_file(other.store, FILE_BYTES)
        leaves = sorted(set(one.store.cids()) - {root})
        for cid in leaves[:6]:
            one.store.delete(cid)
        for cid in (root, *leaves[6:]):
            other.store.delete(cid)
        await meet(fetcher.network, one.network, other.network)
        await fetcher.fetch_whole(root)
        assert set(fetcher.store.cids()) == {root, *leaves}

    play(scenario, tmp_path)


def test_what_the_store_has_is_not_asked_for(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", PATIENT)
        root = add_random_file(provider.store, FILE_BYTES)
        kept = sorted(provider.store.cids())[:7]
        for cid in kept:
            fetcher.store.put(cid, provider.store.get(cid))
        await meet(fetcher.network, provider.network)
        await fetcher.fetch_whole(root)
        assert provider.bitswap.counters.served_blocks == 13 - len(kept)
        await fetcher.fetch_whole(root)
        assert provider.bitswap.counters.served_blocks == 13 - len(kept)

    play(scenario, tmp_path)


def test_a_fetch_that_was_cancelled_resumes_where_it_was(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", PATIENT)
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_whole, root)
            await until(lambda: len(list(fetcher.store.cids())) >= 5)
            nursery.cancel_scope.cancel()
        await fetcher.fetch_whole(root)
        assert same(provider, fetcher)
        assert provider.bitswap.counters.served_blocks <= 13 + 1

    play(scenario, tmp_path)


def test_fetches_of_the_same_content_share_the_work(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", PATIENT)
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(fetcher.fetch_whole, root)
        assert provider.bitswap.counters.served_blocks == 13

    play(scenario, tmp_path)


def test_one_of_two_fetches_is_given_up(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_whole, root)
            with trio.move_on_after(0.02):
                await fetcher.fetch_whole(root)
        assert same(provider, fetcher)

    play(scenario, tmp_path)


def test_a_hint_is_dialled_and_the_dht_is_asked(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        hinted, announced, fetcher = here.peer("hinted"), here.peer("announced"), here.peer("fetcher")
        first, second = add_random_file(hinted.store, 10, seed=1), add_random_file(announced.store, 10, seed=2)
        await fetcher.bitswap.fetch(first, max_bytes=PLENTY, whole=True, hints=[hinted.network.peer_id])
        await announced.network.provide(second)
        await fetcher.fetch_whole(second)
        assert set(fetcher.store.cids()) == {first, second}

    play(scenario, tmp_path)


# ---- trouble --------------------------------------------------------------------------------------------------------


def test_nobody_has_it(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        other, fetcher = here.peer("other"), here.peer("fetcher", HASTY)
        await meet(fetcher.network, other.network)
        started = trio.current_time()
        with pytest.raises(BlockMissing, match="no peer has"):
            await fetcher.fetch_whole(Cid.of(Codec.RAW, b"unknown"))
        assert trio.current_time() - started < 2.0
        assert not other.network.refusals
        assert not fetcher.network.refusals

    play(scenario, tmp_path)


def test_a_block_that_nobody_has_ends_the_fetch(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", HASTY)
        root = add_random_file(provider.store, FILE_BYTES)
        lost = max(set(provider.store.cids()) - {root})
        provider.store.delete(lost)
        await meet(fetcher.network, provider.network)
        with pytest.raises(BlockMissing, match=str(lost)):
            await fetcher.fetch_whole(root)

    play(scenario, tmp_path)


def test_a_peer_that_dies_midway(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        mortal, survivor, fetcher = here.peer("mortal"), here.peer("survivor"), here.peer("fetcher")
        root = add_random_file(mortal.store, 3 * FILE_BYTES)
        add_random_file(survivor.store, 3 * FILE_BYTES)
        await meet(fetcher.network, mortal.network, survivor.network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_whole, root)
            await until(lambda: mortal.bitswap.counters.served_blocks)
            here.hub.kill(mortal.network)
        assert same(survivor, fetcher)

    play(scenario, tmp_path)


def test_the_only_peer_comes_back(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, 3 * FILE_BYTES)
        await meet(fetcher.network, provider.network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_whole, root)
            await until(lambda: provider.bitswap.counters.served_blocks)
            here.hub.cut(fetcher.network, provider.network)
        assert same(provider, fetcher)

    play(scenario, tmp_path)


def all_haves(message: Message) -> Message:
    return Message(presences=tuple((want.cid, True) for want in message.wants if want.only_presence))


def asked_blocks(message: Message) -> list[Cid]:
    return [want.cid for want in message.wants if not want.cancel and not want.only_presence]


def test_a_peer_that_lies_costs_only_itself(tmp_path: Path) -> None:
    async def lie(liar: MemoryNetwork, peer: PeerId, message: Message) -> None:
        junk = tuple((cid, b"junk instead of " + cid.digest) for cid in asked_blocks(message))
        await say(liar, peer, all_haves(message), Message(blocks=junk))

    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        liars = [here.scripted(f"liar {n}", lie) for n in range(3)]
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network, *liars)
        await fetcher.fetch_whole(root)
        assert same(provider, fetcher)
        refused = fetcher.bitswap.counters.refused["unasked-block"]
        assert 1 <= refused <= 3  # each is benched at its first lie
        assert fetcher.network.refusals["unasked-block"] == refused

    play(scenario, tmp_path)


def test_a_peer_that_stalls_is_asked_no_more(tmp_path: Path) -> None:
    async def stall(staller: MemoryNetwork, peer: PeerId, message: Message) -> None:
        await say(staller, peer, all_haves(message))

    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        stallers = [here.scripted(f"staller {n}", stall) for n in range(3)]
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network, *stallers)
        started = trio.current_time()
        await fetcher.fetch_whole(root)
        assert same(provider, fetcher)
        assert trio.current_time() - started < 1.5

    play(scenario, tmp_path)


def test_only_a_staller_has_it(tmp_path: Path) -> None:
    async def stall(staller: MemoryNetwork, peer: PeerId, message: Message) -> None:
        await say(staller, peer, all_haves(message))

    async def scenario(here: World) -> None:
        fetcher, staller = here.peer("fetcher", HASTY), here.scripted("staller", stall)
        await meet(fetcher.network, staller)
        with pytest.raises(BlockMissing):
            await fetcher.fetch_whole(Cid.of(Codec.RAW, b"never"))
        assert fetcher.network.refusals["stalled"] == 1

    play(scenario, tmp_path)


def test_promises_that_are_not_kept(tmp_path: Path) -> None:
    async def break_promises(peer: MemoryNetwork, fetcher: PeerId, message: Message) -> None:
        missing = Message(presences=tuple((cid, False) for cid in asked_blocks(message)))
        await say(peer, fetcher, all_haves(message), missing)

    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, here.scripted("promiser", break_promises), provider.network)
        await fetcher.fetch_whole(root)
        assert same(provider, fetcher)

    play(scenario, tmp_path)


def test_blocks_that_nobody_asked_for_are_not_stored(tmp_path: Path) -> None:
    async def silent(_: MemoryNetwork, __: PeerId, ___: Message) -> None: ...

    async def scenario(here: World) -> None:
        fetcher, pusher = here.peer("fetcher"), here.scripted("pusher", silent)
        await meet(fetcher.network, pusher)
        block = b"take this"
        await say(pusher, fetcher.network.peer_id, Message(blocks=((Cid.of(Codec.RAW, block), block),)))
        await until(lambda: fetcher.network.refusals["unasked-block"])
        assert list(fetcher.store.cids()) == []

    play(scenario, tmp_path)


def test_a_small_block_in_answer_to_the_question_whether_it_is_there(tmp_path: Path) -> None:
    block = b"small"
    cid = Cid.of(Codec.RAW, block)

    async def send_at_once(peer: MemoryNetwork, fetcher: PeerId, message: Message) -> None:
        if any(want.only_presence for want in message.wants):
            await say(peer, fetcher, Message(blocks=((cid, block),)))

    async def scenario(here: World) -> None:
        fetcher = here.peer("fetcher")
        await meet(fetcher.network, here.scripted("kubo", send_at_once))
        await fetcher.fetch_whole(cid)
        assert fetcher.store.get(cid) == block
        assert not fetcher.network.refusals

    play(scenario, tmp_path)


# ---- what must not be fetched ---------------------------------------------------------------------------------------


def test_a_tree_that_expands_without_end(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        below = put_raw(provider.store, b"leaf")
        for _ in range(8):
            links = tuple(Link(below, f"{n:03}", 0) for n in range(174))
            below = put_node(provider.store, Node(links, encode_fields([(1, 1)])))
        await meet(fetcher.network, provider.network)
        started = trio.current_time()
        with pytest.raises(OverBudget):
            await fetcher.fetch_whole(below)
        assert trio.current_time() - started < 1.0
        assert provider.bitswap.counters.served_blocks <= 9

    play(scenario, tmp_path)


def test_a_file_that_declares_more_than_allowed_is_refused_at_its_root(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        with pytest.raises(OverBudget, match="allowed"):
            await fetcher.fetch_whole(root, FILE_BYTES - 1)
        assert provider.bitswap.counters.served_blocks == 1

    play(scenario, tmp_path)


def test_a_node_that_is_none_of_ours(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = put_node(provider.store, Node((), b"no UnixFS"))
        await meet(fetcher.network, provider.network)
        with pytest.raises(MalformedBlock):
            await fetcher.fetch_whole(root)

    play(scenario, tmp_path)


def test_a_full_store_ends_the_fetch(tmp_path: Path) -> None:
    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher", PATIENT, max_bytes=3 * CHUNK_BYTES)
        root = add_random_file(provider.store, FILE_BYTES)
        await meet(fetcher.network, provider.network)
        with pytest.raises(StoreFull):
            await fetcher.fetch_whole(root)
        assert not fetcher.network.refusals

    play(scenario, tmp_path)


def test_answers_of_the_past_are_no_misdeed(tmp_path: Path) -> None:
    """A peer that is asked, falls silent, and sends the block after another has."""
    late: list[Callable[[], Coroutine[Any, Any, None]]] = []

    async def scenario(here: World) -> None:
        provider, fetcher = here.peer("provider"), here.peer("fetcher")
        root = add_random_file(provider.store, FILE_BYTES)
        block = provider.store.get(root)

        async def remember(slow: MemoryNetwork, peer: PeerId, message: Message) -> None:
            await say(slow, peer, all_haves(message))
            if root in asked_blocks(message):
                late.append(lambda: say(slow, peer, Message(blocks=((root, block),))))

        slow = here.scripted("slow", remember)
        await meet(fetcher.network, slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_whole, root)
            await until(lambda: late)
            await meet(fetcher.network, provider.network)
        await late[0]()
        await until(lambda: fetcher.bitswap.counters.duplicate_blocks)
        assert fetcher.network.refusals["unasked-block"] == 0

    play(scenario, tmp_path)
