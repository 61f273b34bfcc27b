"""The network process's part, without processes: frames in, frames out, over a network in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from openlora.node.errors import FrameMalformed
from openlora.node.network.binding import sign_binding
from openlora.node.network.messages import (
    Announce,
    Answer,
    AnswerEnd,
    Ask,
    Asked,
    AskGone,
    Cancel,
    Command,
    Connect,
    Connected,
    ConnectFailed,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    GetStats,
    Gone,
    Provide,
    Ready,
    Reply,
    ReplyEnd,
    Seen,
    Shutdown,
    Stats,
    Taken,
    Trust,
)
from openlora.node.network.process import make_peer
from openlora.node.network.service import NetworkService
from openlora.node.network.trio_frames import TrioFrames
from openlora.node.network.window import MAX_REPLY_BYTES
from openlora.p2p import rpc
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.errors import StreamRefused
from openlora.p2p.memory import MemoryHub, MemoryNetwork
from openlora.p2p.presence.sequence import SequenceCounter
from tests.node.network.fake_network import status
from tests.node.network.nodes import DOMAIN, hot_key, operator, staked

EventT = TypeVar("EventT", bound=Event)
INFER = "/openlora/1/infer"


@dataclass
class Agent:
    """The agent's end."""

    frames: TrioFrames[Event]
    network: MemoryNetwork
    blocks: BlockStore

    async def says(self, *commands: Command) -> None:
        for command in commands:
            await self.frames.send(command)

    async def hears(self, kind: type[EventT]) -> EventT:
        """The next event, which must be of this kind."""
        event = await self.frames.receive()
        assert isinstance(event, kind), event
        return event


class World:
    def __init__(self, hub: MemoryHub, folder: Path, nursery: trio.Nursery) -> None:
        self.hub, self._folder, self._nursery = hub, folder, nursery

    async def node(self, name: str) -> Agent:
        ours, theirs = trio.testing.memory_stream_pair()
        network = self.hub.network(name)
        (here := self._folder / name).mkdir()
        blocks = BlockStore(here / "blocks")
        peer = make_peer(network, blocks, SequenceCounter(here / "sequence"), DOMAIN)
        self._nursery.start_soon(NetworkService(TrioFrames[Command](theirs, Command), peer).run)
        agent = Agent(TrioFrames[Event](ours, Event), network, blocks)
        assert (await agent.hears(Ready)).peer_id == network.peer_id
        return agent

    def stranger(self, name: str) -> MemoryNetwork:
        return self.hub.network(name)


def in_world(folder: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with MemoryHub() as hub, trio.open_nursery() as nursery:
                await scenario(World(hub, folder, nursery))
                nursery.cancel_scope.cancel()

    trio.run(main)


def ask(network: MemoryNetwork, peer: Agent, body: bytes = b"") -> AsyncIterator[bytes]:
    return rpc.ask(network, peer.network.peer_id, INFER, body, timeout_s=5)


def test_a_request_reaches_the_agent_and_its_replies_the_peer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        server, asker = await world.node("server"), await world.node("asker")
        await asker.says(
            Ask(
                id=5,
                peer=server.network.peer_id,
                addresses=tuple(server.network.addresses),
                protocol=INFER,
                body=b"hello",
                timeout_s=5,
            )
        )
        asked = await server.hears(Asked)
        assert (asked.peer, asked.protocol, asked.body) == (asker.network.peer_id, INFER, b"hello")
        await server.says(Answer(id=asked.id, data=b"one"), Answer(id=asked.id, data=b"two"), AnswerEnd(id=asked.id))
        assert [(await asker.hears(Reply)).data for _ in range(2)] == [b"one", b"two"]
        assert await asker.hears(ReplyEnd) == ReplyEnd(id=5, outcome="done")

    in_world(tmp_path, scenario)


@pytest.mark.parametrize("how", ["refused", "unreachable"])
def test_a_request_that_fails_says_how(tmp_path: Path, how: str) -> None:
    async def scenario(world: World) -> None:
        server, asker = await world.node("server"), await world.node("asker")
        peer = server.network.peer_id if how == "refused" else world.stranger("nobody").peer_id
        await asker.says(Ask(id=1, peer=peer, addresses=(), protocol=INFER, body=b"", timeout_s=1))
        if how == "refused":
            await server.says(AnswerEnd(id=(await server.hears(Asked)).id, refusal="not today"))
            assert await asker.hears(ReplyEnd) == ReplyEnd(id=1, outcome="refused", message="not today")
        else:
            assert (await asker.hears(ReplyEnd)).outcome == "failed"

    in_world(tmp_path, scenario)


def test_a_cancelled_request_ends_at_the_other_agent(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        server, asker = await world.node("server"), await world.node("asker")
        await asker.says(Ask(id=1, peer=server.network.peer_id, addresses=(), protocol=INFER, body=b"", timeout_s=5))
        asked = await server.hears(Asked)
        await asker.says(Cancel(id=1))
        assert await server.hears(AskGone) == AskGone(id=asked.id)
        await server.says(Answer(id=asked.id, data=b"late"), AnswerEnd(id=asked.id), GetStats(id=1))
        await server.hears(Stats)

    in_world(tmp_path, scenario)


def test_a_flood_is_refused_with_a_reason_and_leaves_others_their_turn(tmp_path: Path) -> None:
    """Sixteen peers fill the node; the fifth request of one is refused at once, the seventeenth's first is not."""

    async def scenario(world: World) -> None:
        server = await world.node("server")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_is_refused, ask(world.stranger("stranger0"), server), "this node is busy")
            await server.hears(Asked)
            for number in range(1, 64):
                nursery.start_soon(_drain, ask(world.stranger(f"stranger{number // 4}"), server))
                await server.hears(Asked)
            await _is_refused(ask(world.stranger("stranger15"), server), "4 of your requests are under way")
            nursery.start_soon(_drain, ask(world.stranger("late"), server))
            assert await server.hears(AskGone) == AskGone(id=1)
            await server.hears(Asked)
            await server.says(GetStats(id=1))
            refused = (await server.hears(Stats)).refused
            assert refused == {"asked_too_much_by_peer": 1, "asked_too_much": 1}
            nursery.cancel_scope.cancel()
        for _ in range(64):
            await server.hears(AskGone)

    in_world(tmp_path, scenario)


def test_the_agent_hears_what_a_peer_has_taken(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        server, stranger = await world.node("server"), world.stranger("reader")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, ask(stranger, server))
            asked = await server.hears(Asked)
            for _ in range(20):
                await server.says(Answer(id=asked.id, data=bytes(MAX_REPLY_BYTES)))
                assert await server.hears(Taken) == Taken(id=asked.id, bytes=MAX_REPLY_BYTES + 64)
            await server.says(AnswerEnd(id=asked.id))

    in_world(tmp_path, scenario)


def test_an_agent_that_does_not_wait_for_a_slow_peer_ends_the_service(tmp_path: Path) -> None:
    """What the peer's stream does not take is not piled up here."""

    async def scenario(world: World) -> None:
        server, stranger = await world.node("server"), world.stranger("slow")
        stream = await stranger.open_stream(server.network.peer_id, [INFER])
        await stream.write(bytes((0, 0, 0, 1, 0)))  # an empty request, whose replies nobody reads
        asked = await server.hears(Asked)
        for _ in range(100):
            await server.says(Answer(id=asked.id, data=bytes(MAX_REPLY_BYTES)))

    with pytest.RaisesGroup(FrameMalformed, flatten_subgroups=True, allow_unwrapped=True):
        in_world(tmp_path, scenario)


def test_blocks_are_provided_found_and_fetched(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        has, wants = await world.node("has"), await world.node("wants")
        block = b"a document"
        cid = Cid.of(Codec.RAW, block)
        has.blocks.put(cid, block)
        await has.says(Provide(cids=("no cid", str(cid))), GetStats(id=1))
        await has.hears(Stats)
        while not await wants.network.providers(cid, 1):
            await trio.lowlevel.checkpoint()
        await wants.says(Fetch(id=1, cid=str(cid), max_bytes=100, whole=False))
        assert await wants.hears(Fetched) == Fetched(id=1, blocks=1, bytes=len(block))
        assert wants.blocks.get(cid) == block
        await wants.says(Fetch(id=2, cid="no cid", max_bytes=100, whole=False))
        assert (await wants.hears(FetchFailed)).code == "refused"
        await wants.says(GetStats(id=3))
        assert (await wants.hears(Stats)).block_bytes_fetched == len(block)

    in_world(tmp_path, scenario)


def test_records_are_told_as_trust_changes(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        told, watcher = await world.node("told"), await world.node("watcher")
        binding = sign_binding(hot_key(0), DOMAIN, operator(0), told.network.peer_id)
        await watcher.says(Trust(operators=staked(1)), Connect(id=1, addresses=tuple(told.network.addresses)))
        assert (await watcher.hears(Connected)).peer == told.network.peer_id
        name = operator(0).lower()
        await told.says(
            Announce(operator=name, hot_key=hot_key(0).address.lower(), binding=binding, status=status(queued=2))
        )
        record = (await watcher.hears(Seen)).record
        assert (record.operator, record.peer, record.status.load.queued) == (name, told.network.peer_id, 2)
        await watcher.says(Trust(operators={}))
        assert await watcher.hears(Gone) == Gone(operator=name)

    in_world(tmp_path, scenario)


def test_a_node_that_is_shut_down_is_missed_in_seconds(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        leaving, watcher = await world.node("leaving"), await world.node("watcher")
        binding = sign_binding(hot_key(0), DOMAIN, operator(0), leaving.network.peer_id)
        name = operator(0).lower()
        await watcher.says(Trust(operators=staked(1)))
        await leaving.says(Connect(id=1, addresses=tuple(watcher.network.addresses)))
        await leaving.hears(Connected)
        await leaving.says(
            Announce(operator=name, hot_key=hot_key(0).address.lower(), binding=binding, status=status())
        )
        await watcher.hears(Seen)
        await leaving.says(Shutdown())
        last = (await watcher.hears(Seen)).record
        assert last.expires_at == last.issued_at + 2
        assert await watcher.hears(Gone) == Gone(operator=name)

    in_world(tmp_path, scenario)


def test_a_dead_address_is_a_sentence(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        node = await world.node("node")
        await node.says(Connect(id=1, addresses=("/memory/1/p2p/nobody",)))
        assert "nobody answers" in (await node.hears(ConnectFailed)).message

    in_world(tmp_path, scenario)


@pytest.mark.parametrize("how", ["shutdown", "close"])
def test_the_service_ends_with_its_agent(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            async with MemoryHub() as hub:
                ours, theirs = trio.testing.memory_stream_pair()
                peer = make_peer(
                    hub.network("a"), BlockStore(tmp_path / "blocks"), SequenceCounter(tmp_path / "sequence"), DOMAIN
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(NetworkService(TrioFrames[Command](theirs, Command), peer).run)
                    if how == "shutdown":
                        await TrioFrames[Event](ours, Event).send(Shutdown())
                    else:
                        await ours.aclose()

    trio.run(main)


async def _is_refused(replies: AsyncIterator[bytes], reason: str) -> None:
    with pytest.raises(StreamRefused, match=reason):
        await _drain(replies)


async def _drain(replies: AsyncIterator[bytes]) -> None:
    async for _ in replies:
        pass
