"""Copies at other nodes: who is asked, who keeps, and what is refused."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from openlora.node.content import BlockContent, adapter_cid
from openlora.node.errors import OpenLoraError, RpcDown
from openlora.node.network import replication
from openlora.node.network.rates import RateLimits
from openlora.node.network.replication import CONTROL, Keep, Keeper, KeeperLimits, Kept, Replicas, replicate, room
from tests.node.network.fake_peers import FakePeer, FakePeers

DEFAULTS = KeeperLimits()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Node:
    """A node with a keeper, and what it wants."""

    network: FakePeer
    local: BlockContent
    keeper: Keeper
    clock: Clock
    room_bytes: int = 1 << 30
    wants: bool = True
    trouble: Exception | None = None
    asked_about: list[str] = field(default_factory=list)


def node_in(peers: FakePeers, name: str, limits: KeeperLimits = DEFAULTS, **traits) -> Node:
    network, clock = peers.peer(name, **traits), Clock()
    local = BlockContent(network.folder)

    async def wanted(cid: str) -> str | None:
        node.asked_about.append(cid)
        if node.trouble is not None:
            raise node.trouble
        return "an adapter" if node.wants else None

    keeper = Keeper(network, local, wanted, lambda: node.room_bytes, limits, clock)
    node = Node(network, local, keeper, clock)
    network.handle(CONTROL, keeper.answer)
    return node


@pytest.fixture
def peers(tmp_path: Path) -> FakePeers:
    return FakePeers(tmp_path / "peers")


@dataclass
class Author:
    """Somebody's laptop, which is no node, with a folder published."""

    network: FakePeer
    cid: str
    size: int

    async def replicate(self, **options) -> Replicas:
        return await replicate(self.network, self.cid, self.size, **{"patience_s": 0, **options})

    async def ask(self, node: Node, body: bytes | None = None) -> Sequence[object]:
        request = msgspec.msgpack.encode(Keep(self.cid, self.size)) if body is None else body
        replies = self.network.ask(node.network.peer_id, CONTROL, request)
        return [replication._reply_decoder.decode(data) async for data in replies]


@pytest.fixture
async def author(peers: FakePeers, tmp_path: Path) -> Author:
    network = peers.peer("laptop", staked=False)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 3_000)
    (folder / "zeros").write_bytes(bytes(600_000))  # two of its three blocks are one
    content = BlockContent(network.folder)
    cid = await content.publish_directory(folder)
    return Author(network, cid, await content.size(cid))


# ---- asking ----


async def test_three_nodes_keep_all_of_it(peers: FakePeers, author: Author) -> None:
    nodes = [node_in(peers, f"node-{number}") for number in range(5)]
    replicas = await author.replicate()
    assert replicas.enough
    assert str(replicas) == "3 other nodes keep a copy"
    keepers = [node for node in nodes if node.network.peer_id in replicas.holders]
    assert len(keepers) == len(author.network.asked) == 3
    for keeper in keepers:
        assert await keeper.local.size(author.cid) == author.size
        assert keeper.network.provided == [author.cid]


async def test_what_refuses_or_is_gone_is_passed_over(peers: FakePeers, author: Author) -> None:
    nodes = [node_in(peers, f"node-{number}") for number in range(6)]
    nodes[0].wants = nodes[1].wants = False
    nodes[2].network.died.set()
    replicas = await author.replicate()
    assert set(replicas.holders) == {node.network.peer_id for node in nodes[3:]}
    assert len(author.network.asked) == len(set(author.network.asked))


async def test_too_few_copies_are_said_and_no_error(peers: FakePeers, author: Author) -> None:
    nodes = [node_in(peers, f"node-{number}") for number in range(3)]
    nodes[0].wants = False
    nodes[1].room_bytes = author.size - 1
    replicas = await author.replicate()
    assert replicas.holders == (nodes[2].network.peer_id,)
    assert not replicas.enough
    assert replicas.refusals == {"the node has no use for it": 1, "the node has no room for it": 1}
    assert "only 1 of the 3 copies" in str(replicas)
    assert "1 × the node has no room for it" in str(replicas)


async def test_nobody_is_there(author: Author) -> None:
    replicas = await author.replicate()
    assert replicas.holders == ()
    assert "no copy is kept by other nodes" in str(replicas)
    assert "no other node is known" in str(replicas)


async def test_nodes_that_are_heard_of_late_are_waited_for(peers: FakePeers, author: Author) -> None:
    replicating = asyncio.create_task(author.replicate(copies=2, patience_s=5))
    await asyncio.sleep(0.05)
    nodes = [node_in(peers, f"node-{number}") for number in range(2)]
    assert set((await replicating).holders) == {node.network.peer_id for node in nodes}


async def test_a_node_does_not_ask_itself(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    assert (await author.replicate()).holders == (node.network.peer_id,)
    assert (await replicate(node.network, author.cid, author.size, patience_s=0)).holders == ()


async def test_only_nodes_with_the_base_are_asked(peers: FakePeers, author: Author) -> None:
    node_in(peers, "other", base_id="02" * 32)
    fitting = node_in(peers, "fitting")
    assert (await author.replicate(base_id="01" * 32)).holders == (fitting.network.peer_id,)
    assert author.network.asked == [fitting.network.peer_id]


async def test_publications_spread_over_the_nodes(peers: FakePeers, author: Author) -> None:
    for number in range(8):
        node_in(peers, f"node-{number}")
    first = {
        next(replication._in_order(author.network.nodes(), adapter_cid(bytes([number]) * 32))).operator
        for number in range(64)
    }
    assert len(first) == 8
    nodes = author.network.nodes()
    assert list(replication._in_order(nodes, author.cid)) == list(replication._in_order(nodes[::-1], author.cid))


async def test_a_node_that_never_finishes_costs_only_its_own_time(
    peers: FakePeers, author: Author, monkeypatch
) -> None:
    monkeypatch.setattr(replication, "HEARTBEAT_S", 0.01)
    slow, quick = node_in(peers, "slow"), node_in(peers, "quick")
    slow.network.gate = asyncio.Event()
    replicas = await author.replicate(copies=2, node_timeout_s=1.0)
    assert replicas.holders == (quick.network.peer_id,)
    assert replicas.refusals == {"it did not have all of it in time": 1}


async def test_a_node_that_answers_nonsense_or_nothing(peers: FakePeers, author: Author) -> None:
    async def nonsense(peer: str, body: bytes):
        yield b"\xc1"

    async def no_text(peer: str, body: bytes):
        yield b"\x81\xa4type\xa1\xff"

    async def nothing(peer: str, body: bytes):
        return
        yield b""

    peers.peer("nonsense").handle(CONTROL, nonsense)
    peers.peer("no text").handle(CONTROL, no_text)
    peers.peer("nothing").handle(CONTROL, nothing)
    replicas = await author.replicate()
    assert replicas.refusals == {"it answers in another language": 2, "it ended its answer early": 1}


# ---- keeping ----


async def test_what_is_here_is_kept_at_once(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    assert await author.ask(node) == [Kept()]
    node.room_bytes = 0
    assert await author.ask(node) == [Kept()]
    assert node.network.fetches == 1


async def test_what_is_here_in_part_is_completed(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    await author.ask(node)
    node.network.blocks.delete(next(node.network.blocks.cids()))
    assert await author.ask(node) == [Kept()]
    assert await node.local.size(author.cid) == author.size


async def test_more_than_was_declared_is_refused(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    with pytest.raises(OpenLoraError, match="not what its CID and size say"):
        await author.ask(node, msgspec.msgpack.encode(Keep(author.cid, author.size - 1)))


async def test_what_the_publisher_does_not_have(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    with pytest.raises(OpenLoraError, match="could not find all of it"):
        await author.ask(node, msgspec.msgpack.encode(Keep(adapter_cid(bytes(32)), 1)))
    assert node.network.provided == []


async def test_a_refusal_names_neither_our_machines_nor_our_files(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node")
    node.trouble = RpcDown("https://rpc.example/v1/SECRET does not answer")
    with pytest.raises(OpenLoraError, match="cannot look into it now") as refusal:
        await author.ask(node)
    assert "SECRET" not in str(refusal.value)


async def test_a_busy_keeper_and_what_is_on_its_way_counts(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node", KeeperLimits(concurrent=2))
    node.room_bytes = 2 * author.size - 1
    node.network.gate = asyncio.Event()
    first = asyncio.create_task(author.ask(node))
    await node.network.fetching.wait()
    with pytest.raises(OpenLoraError, match="is fetching other content"):  # the same, twice
        await author.ask(node)
    with pytest.raises(OpenLoraError, match="no room"):
        await author.ask(node, msgspec.msgpack.encode(Keep(adapter_cid(b"\x01" * 32), author.size)))
    node.network.gate.set()
    assert await first == [Kept()]


async def test_an_asker_that_leaves_ends_the_fetch(peers: FakePeers, author: Author, monkeypatch) -> None:
    monkeypatch.setattr(replication, "HEARTBEAT_S", 0.01)
    node = node_in(peers, "node", KeeperLimits(concurrent=1))
    node.network.gate = asyncio.Event()
    replies = node.keeper.answer(author.network.peer_id, msgspec.msgpack.encode(Keep(author.cid, author.size)))
    await anext(replies)
    await replies.aclose()
    node.network.gate.set()
    assert await author.ask(node) == [Kept()]


async def test_a_fetch_that_takes_too_long(peers: FakePeers, author: Author, monkeypatch) -> None:
    monkeypatch.setattr(replication, "HEARTBEAT_S", 0.01)
    node = node_in(peers, "node", KeeperLimits(fetch_timeout_s=60))
    node.network.gate = asyncio.Event()
    replies = node.keeper.answer(author.network.peer_id, msgspec.msgpack.encode(Keep(author.cid, author.size)))
    await anext(replies)
    node.clock.now = 61
    with pytest.raises(OpenLoraError, match="could not fetch it in time"):
        await anext(replies)


async def test_a_peer_that_asks_too_often(peers: FakePeers, author: Author) -> None:
    node = node_in(peers, "node", KeeperLimits(rates=RateLimits(per_s=0.5, burst=2)))
    node.wants = False
    for _ in range(2):
        with pytest.raises(OpenLoraError, match="no use for it"):
            await author.ask(node)
    with pytest.raises(OpenLoraError, match="too often"):
        await author.ask(node)
    assert len(node.asked_about) == 2
    node.clock.now = 2
    with pytest.raises(OpenLoraError, match="no use for it"):
        await author.ask(node)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa4type\xa1\xff",
        msgspec.msgpack.encode({"type": "erase"}),
        msgspec.msgpack.encode({"type": "keep", "cid": "b" * 60, "bytes": 1}),
        msgspec.msgpack.encode({"type": "keep", "cid": "b", "bytes": -1}),
        msgspec.msgpack.encode({"type": "keep", "cid": "b", "bytes": 1, "more": 1}),
    ],
)
async def test_what_is_no_request(peers: FakePeers, author: Author, body: bytes) -> None:
    node = node_in(peers, "node")
    with pytest.raises(OpenLoraError, match="no request that the node knows"):
        await author.ask(node, body)
    assert node.asked_about == []


def test_room_is_what_quota_and_disk_leave(tmp_path: Path, peers: FakePeers) -> None:
    folder = peers.peer("node").folder
    assert room(folder, 1000, 0)() == 1000
    (folder / "aa").mkdir()
    assert room(folder, 1000, 1 << 62)() == 0
