"""Serving: what is answered, and that floods, slow readers and nonsense cost only those who bring them."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from openlora.p2p.bitswap.messages import PROTOCOLS, Message, Want, encode_message
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import encode_varint
from openlora.p2p.content.unixfs import CHUNK_BYTES
from openlora.p2p.memory import MemoryNetwork
from openlora.p2p.network import PeerId
from tests.p2p.bitswap.peers import LIMITS, Peer, World, add_random_file, meet, say, until, world

SMALL = b"a small block"
CID, UNKNOWN = Cid.of(Codec.RAW, SMALL), Cid.of(Codec.RAW, b"unknown")


class Asker:
    """A peer that says what it likes, and keeps what it hears."""

    def __init__(self, here: World, name: str = "asker") -> None:
        self.heard: list[Message] = []
        self.network = here.scripted(name, self._listen)

    async def _listen(self, _: MemoryNetwork, __: PeerId, message: Message) -> None:
        self.heard.append(message)

    @property
    def blocks(self) -> list[Cid]:
        return [cid for message in self.heard for cid, _ in message.blocks]

    @property
    def presences(self) -> list[tuple[Cid, bool]]:
        return [presence for message in self.heard for presence in message.presences]

    async def say(self, peer: Peer, *said: Message) -> None:
        await say(self.network, peer.network.peer_id, *said)

    async def send(self, peer: Peer, data: bytes) -> None:
        stream = await self.network.open_stream(peer.network.peer_id, PROTOCOLS)
        await stream.write(data)


Scenario = Callable[[World, Peer], Coroutine[Any, Any, None]]


def play(scenario: Scenario, folder: Path) -> None:
    async def main() -> None:
        async with world(folder) as here:
            server = here.peer("server")
            server.store.put(CID, SMALL)
            await until(lambda: server.bitswap.running)
            await scenario(here, server)

    trio.run(main)


def test_wants_are_answered(tmp_path: Path) -> None:
    async def scenario(here: World, server: Peer) -> None:
        asker = Asker(here)
        wants = (
            Want(CID, only_presence=True),
            Want(UNKNOWN, only_presence=True, say_missing=True),
            Want(Cid.of(Codec.RAW, b"silence"), only_presence=True),
        )
        await asker.say(server, Message(wants=wants))
        await until(lambda: asker.presences)
        await asker.say(server, Message(wants=(Want(Cid.of(Codec.RAW, b"silence")), Want(CID))))
        await until(lambda: asker.blocks)
        await asker.say(server, Message(wants=(Want(UNKNOWN, say_missing=True),)))
        await until(lambda: len(asker.presences) == 3)
        assert asker.presences == [(CID, True), (UNKNOWN, False), (UNKNOWN, False)]
        assert asker.heard[1] == Message(blocks=((CID, SMALL),))
        assert server.bitswap.counters.served_blocks == 1
        assert not server.network.refusals

    play(scenario, tmp_path)


def test_one_block_a_message(tmp_path: Path) -> None:
    async def scenario(here: World, server: Peer) -> None:
        add_random_file(server.store, 5 * CHUNK_BYTES)
        asker, cids = Asker(here), list(server.store.cids())
        await asker.say(server, Message(wants=tuple(Want(cid) for cid in cids)))
        await until(lambda: len(asker.blocks) == len(cids))
        assert asker.blocks == cids  # in the order asked
        assert all(len(message.blocks) == 1 for message in asker.heard)

    play(scenario, tmp_path)


def test_cancels_and_full_wantlists(tmp_path: Path) -> None:
    async def scenario(here: World, server: Peer) -> None:
        add_random_file(server.store, 8 * CHUNK_BYTES)
        asker, cids = Asker(here), sorted(cid for cid in server.store.cids() if cid.codec == Codec.RAW and cid != CID)
        here.hub.stall(asker.network, server.network)  # nothing is taken yet
        stalled = [Message(wants=tuple(Want(cid) for cid in cids))]
        stalled += [Message(wants=(Want(cids[3], cancel=True),)), Message(wants=(Want(CID),), full=True)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.say, server, *stalled)
            await trio.testing.wait_all_tasks_blocked()
            here.hub.stall(asker.network, server.network, stalled=False)
        await until(lambda: CID in asker.blocks)
        assert len(asker.blocks) < len(cids)
        assert cids[3] not in asker.blocks

    play(scenario, tmp_path)


def test_a_flood_of_wants_is_bounded(tmp_path: Path) -> None:
    async def scenario(here: World, server: Peer) -> None:
        add_random_file(server.store, 2 * CHUNK_BYTES)
        flooder, honest = Deaf(here), here.peer("honest")
        root = max(server.store.cids(), key=lambda cid: cid.codec)
        await meet(honest.network, server.network)
        leaf = next(cid for cid in server.store.cids() if cid.codec == Codec.RAW and cid != CID)
        await say(flooder.network, server.network.peer_id, Message(wants=(Want(leaf),)))
        for start in range(0, 10_000, 1000):
            wants = tuple(Want(Cid.of(Codec.RAW, n.to_bytes(4, "big"))) for n in range(start, start + 1000))
            await say(flooder.network, server.network.peer_id, Message(wants=wants))
        await honest.fetch_whole(root)
        refused = server.bitswap.counters.refused["too-many-wants"]
        assert refused >= 10_000 - 2 * LIMITS.wants_per_peer

    play(scenario, tmp_path)


def test_lists_of_wants_are_read_no_faster_than_agreed(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            server = here.peer("server", replace(LIMITS, unasked_bytes=1000.0, unasked_bytes_per_s=1.0))
            root = add_random_file(server.store, 2 * CHUNK_BYTES)
            flooder, honest = Deaf(here), here.peer("honest")
            await meet(honest.network, server.network)
            for start in range(0, 10_000, 1000):
                wants = tuple(Want(Cid.of(Codec.RAW, n.to_bytes(4, "big"))) for n in range(start, start + 1000))
                await say(flooder.network, server.network.peer_id, Message(wants=wants))
            await honest.fetch_whole(root)
            assert server.bitswap.counters.refused["too-many-wants"] == 0  # it has not come to the second list

    trio.run(main)


class Deaf:
    """A peer that opens its streams and never reads them."""

    def __init__(self, here: World, name: str = "deaf") -> None:
        self.network = here.hub.network(name)
        for protocol in PROTOCOLS:
            self.network.handle(protocol, self._ignore)

    async def _ignore(self, _: object) -> None:
        await trio.sleep_forever()


def test_a_slow_reader_costs_only_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            server = here.peer("server", replace(LIMITS, write_timeout_s=0.2))
            root = add_random_file(server.store, 4 * CHUNK_BYTES)
            deaf, honest = [Deaf(here, f"deaf {n}") for n in range(20)], here.peer("honest")
            wants = tuple(Want(cid) for cid in server.store.cids())
            await until(lambda: server.bitswap.running)
            for peer in deaf:
                await say(peer.network, server.network.peer_id, Message(wants=wants))
            await meet(honest.network, server.network)
            await honest.fetch_whole(root)
            await until(lambda: server.bitswap.counters.refused["answer-not-taken"] == len(deaf))
            assert not server.network.refusals  # slow is not wicked

    trio.run(main)


NONSENSE = {
    "no protobuf": b"\x04\xff\xff\xff\xff",
    "no length": b"\xff" * 10,
    "too large": encode_varint(LIMITS.unasked_message_bytes + 1) + bytes(100),
    "padded length": b"\x85\x00" + bytes(5),
    "unasked block": encode_message(Message(blocks=((UNKNOWN, b"unknown"),))),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_refused_and_noted(tmp_path: Path, nonsense: str) -> None:
    async def scenario(here: World, server: Peer) -> None:
        asker, honest = Asker(here), here.peer("honest")
        await asker.send(server, NONSENSE[nonsense])
        await until(lambda: server.network.refusals.total())
        await meet(honest.network, server.network)
        await honest.fetch_whole(CID)
        assert set(server.network.refusals) <= {"bitswap-message", "unasked-block"}

    play(scenario, tmp_path)


def test_a_message_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            server, asker = here.peer("server", replace(LIMITS, message_timeout_s=0.05)), Asker(here)
            await until(lambda: server.bitswap.running)
            await asker.send(server, encode_varint(1000) + b"and then nothing")
            await until(lambda: server.network.refusals["bitswap-message"])

    trio.run(main)


def test_a_large_message_may_come_from_who_was_asked(tmp_path: Path) -> None:
    big = bytes(2 * 1024 * 1024)
    cid = Cid.of(Codec.RAW, big)

    async def scenario(here: World, server: Peer) -> None:
        server.store.put(cid, big)
        fetcher = here.peer("fetcher")
        await meet(fetcher.network, server.network)
        await fetcher.fetch_whole(cid)
        assert fetcher.store.get(cid) == big

    play(scenario, tmp_path)
