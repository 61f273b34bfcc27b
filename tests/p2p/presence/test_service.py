"""Presence over a whole network in one process, in simulated time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from openlora.p2p import rpc
from openlora.p2p.errors import StreamRefused
from openlora.p2p.memory import MemoryHub, MemoryNetwork
from openlora.p2p.network import PeerId
from openlora.p2p.presence.announcer import Announcer, Membership, matters
from openlora.p2p.presence.book import PresenceBook
from openlora.p2p.presence.record import Adapters, Presence, Status, decode
from openlora.p2p.presence.sequence import SequenceCounter
from openlora.p2p.presence.service import PROTOCOL, PresenceService, Wanted, topic
from tests.p2p.presence.people import BINDING, CHAIN_ID, NOW, Node, Registry, digests, status


def clock() -> float:
    return NOW + trio.current_time()


class Peer:
    """One node on the network."""

    def __init__(self, hub: MemoryHub, name: str, folder: Path) -> None:
        self.name = name
        self.node = Node(name)
        self.network = hub.network(name)
        self.registry = Registry()
        sequence = SequenceCounter(folder / f"{name}.sequence", clock)
        self.announcer = Announcer(self.network, CHAIN_ID, sequence, clock)
        own, made = self.network.peer_id, self.announcer.made
        self.book = PresenceBook(CHAIN_ID, self.registry, clock, own=own, made=made)
        self.service = PresenceService(self.network, self.book, self.announcer)

    def enter(self, state: Status | None = None) -> None:
        self.announcer.join(Membership(self.node.operator, self.node.hot_key, BINDING))
        self.announcer.announce(state or status())

    async def meet(self, other: "Peer") -> None:
        await self.network.connect(other.network.addresses)

    def sees(self) -> set[str]:
        return {record.operator for record in self.book.live()}


class World:
    def __init__(self, hub: MemoryHub, nursery: trio.Nursery, folder: Path) -> None:
        self.hub, self.nursery, self.folder = hub, nursery, folder
        self._scopes: dict[str, trio.CancelScope] = {}

    async def peer(self, name: str, *, silent: bool = False) -> Peer:
        peer = Peer(self.hub, name, self.folder)
        self._scopes[name] = trio.CancelScope()
        if not silent:
            peer.enter()
        self.nursery.start_soon(self._live, peer)
        await trio.testing.wait_all_tasks_blocked()
        return peer

    def kill(self, peer: Peer) -> None:
        self._scopes[peer.name].cancel()
        self.hub.kill(peer.network)

    async def _live(self, peer: Peer) -> None:
        with self._scopes[peer.name]:
            await peer.service.run()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with MemoryHub() as hub, trio.open_nursery() as nursery:
        yield World(hub, nursery, folder)
        nursery.cancel_scope.cancel()


def run(folder: Path, story: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(1000):
            async with world(folder) as around:
                await story(around)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def ask(network: MemoryNetwork, peer: PeerId, request: bytes) -> list[Presence]:
    return [decode(data) async for data in rpc.ask(network, peer, PROTOCOL, request, timeout_s=5)]


EVERYTHING = msgspec.msgpack.encode(Wanted(CHAIN_ID, b""))


def test_ten_nodes_in_a_line_see_each_other_within_five_seconds(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        peers = [await around.peer(str(index)) for index in range(10)]
        for left, right in pairwise(peers):
            await left.meet(right)
        await trio.sleep(5)
        everybody = {peer.node.operator for peer in peers}
        assert [peer.sees() for peer in peers] == [everybody - {peer.node.operator} for peer in peers]

    run(tmp_path, story)


def test_who_comes_late_gets_the_table_though_gossip_is_lost(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        hub = await around.peer("hub")
        leaves = [await around.peer(name) for name in "abcd"]
        for leaf in leaves:
            await leaf.meet(hub)
            around.hub.lose(leaf.network, hub.network)
            await trio.sleep(1)
        await trio.sleep(4)
        everybody = {peer.node.operator for peer in [hub, *leaves]}
        for _ in range(20):
            for peer in [hub, *leaves]:
                assert peer.sees() == everybody - {peer.node.operator}, "exchange alone keeps the table"
            await trio.sleep(20)

    run(tmp_path, story)


def test_what_an_exchange_brought_first_is_passed_on_by_gossip_all_the_same(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b, c = await around.peer("a"), around.hub.network("b"), around.hub.network("c")
        heard: list[bytes] = []
        c.subscribe(topic(CHAIN_ID), lambda peer, data: heard.append(data))
        record = Node("x").record(at=int(clock()))

        async def tells(peer: PeerId, request: bytes) -> AsyncIterator[bytes]:
            yield record

        rpc.serve(b, PROTOCOL, tells)
        await b.connect(a.network.addresses)
        await trio.sleep(1)
        await c.connect(a.network.addresses)
        for _ in range(3):
            await b.publish(topic(CHAIN_ID), record)
            await trio.sleep(0.1)
        assert heard.count(record) == 1, "once, however often it is said"

    run(tmp_path, story)


def test_the_dead_are_gone_when_their_record_expires_and_come_back_at_once(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        await trio.sleep(100)
        assert a.sees() == {b.node.operator}
        around.kill(b)
        await trio.sleep(61)
        assert a.sees() == set()
        reborn = await around.peer("b")  # the same keys, and the file with its sequence numbers
        await reborn.meet(a)
        await trio.sleep(2)
        assert a.sees() == {b.node.operator}
        assert a.book.refused.keys() <= {"own", "replayed"}

    run(tmp_path, story)


def test_who_says_farewell_is_gone_in_seconds(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        await trio.sleep(10)
        await b.service.farewell()
        await trio.sleep(0.1)
        around.kill(b)
        await trio.sleep(4)
        assert a.sees() == set()

    run(tmp_path, story)


def test_a_change_that_matters_is_told_within_a_second(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        await trio.sleep(10)
        for changed in (status(slots=3), status(slots=3, price="7"), status(slots=3, price="7", queued=40)):
            await trio.sleep(5)
            b.announcer.announce(changed)
            await trio.sleep(1)
            seen = a.book.get(b.node.operator)
            assert seen is not None
            assert seen.status == changed

    run(tmp_path, story)


def test_one_job_more_is_told_with_the_next_record(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        await trio.sleep(3)
        b.announcer.announce(status(running=2))
        await trio.sleep(2)
        seen = a.book.get(b.node.operator)
        assert seen is not None
        assert seen.status.load.running == 1
        await trio.sleep(20)
        seen = a.book.get(b.node.operator)
        assert seen is not None
        assert seen.status.load.running == 2

    run(tmp_path, story)


def test_however_fast_things_change_no_record_is_refused_and_gossip_stays_small(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        heard = bytearray()
        wire = around.hub.network("wire")
        wire.subscribe(topic(CHAIN_ID), lambda peer, data: heard.extend(data))
        await wire.connect(b.network.addresses)
        for step in range(1200):
            b.announcer.announce(status(slots=8, ram=32, disk=128 + step % 2, price=str(step)))
            await trio.sleep(0.1)
        assert a.book.refused["rate_limited"] == 0
        assert 5 * 6000 < len(heard) <= 120 / 4 * 2048 + 4 * 6200, "half a kilobyte a second"

    run(tmp_path, story)


def test_nothing_is_announced_before_it_is_known_whose_node_this_is(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b", silent=True)
        await a.meet(b)
        b.announcer.announce(status())
        b.announcer.repeat()
        await trio.sleep(30)
        assert a.sees() == set()
        assert b.sees() == {a.node.operator}, "who has nothing to say may listen"
        b.enter()
        await trio.sleep(1)
        assert a.sees() == {b.node.operator}

    run(tmp_path, story)


def test_when_trust_comes_late_the_table_is_asked_for_again(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        a.registry.unstaked.add(b.node.operator)
        await a.meet(b)
        await trio.sleep(10)
        assert a.sees() == set()
        a.registry.unstaked.clear()
        a.service.resync()
        await trio.sleep(2)
        assert a.sees() == {b.node.operator}
        a.registry.unstaked.add(b.node.operator)
        a.service.resync()
        assert a.sees() == set()
        assert b.book.refused.keys() <= {"own", "replayed"}

    run(tmp_path, story)


def test_changes_are_told_once_and_the_last_state_only(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a, b = await around.peer("a"), await around.peer("b")
        await a.meet(b)
        await trio.sleep(3)
        early = a.service.changes()
        operator, record = await anext(early)
        assert (operator, record) == (b.node.operator, a.book.get(b.node.operator))
        around.kill(b)
        with trio.fail_after(70):
            assert await anext(early) == (b.node.operator, None)
        c = await around.peer("c")
        await c.meet(a)
        await trio.sleep(70)
        operator, record = await anext(early)
        assert record is not None
        assert record == a.book.get(c.node.operator)
        with trio.move_on_after(1) as nothing_more:
            await anext(early)
        assert nothing_more.cancelled_caught

    run(tmp_path, story)


# ---- hostile peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Node("x").record(at=NOW)[:-1] + b"\xff", "malformed"),
        (lambda: bytes(8193), "oversize"),
        (lambda: bytes(64) + Node("x").record(at=NOW)[64:], "forged"),
        (lambda: Node("x").record(at=NOW, expires_at=4_070_908_800), "expires_too_late"),
        (lambda: Node("x").record(at=NOW, binding=bytes(65)), "binding_forged"),
        (lambda: Node("x").record(at=NOW, chain_id=1), "wrong_chain"),
        (lambda: Node("x").record(at=NOW - 70), "expired"),
        (lambda: Node("x").record(at=NOW + 70), "from_the_future"),
    ],
)
def test_who_passes_on_what_no_honest_node_would_is_penalised(
    tmp_path: Path, make: Callable[[], bytes], code: str
) -> None:
    async def story(around: World) -> None:
        a, c = await around.peer("a"), await around.peer("c")
        liar = around.hub.network("liar")
        await a.meet(c)
        await liar.connect(a.network.addresses)
        await liar.publish(topic(CHAIN_ID), make())
        await trio.testing.wait_all_tasks_blocked()
        at_fault = code not in ("expired", "from_the_future")
        assert a.book.refused[code] == 1
        assert a.network.refusals == ({code: 1} if at_fault else {})
        assert c.book.refused[code] == 0, "it goes no further"

    run(tmp_path, story)


def test_a_liar_in_an_exchange_is_left_at_its_first_forgery(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a = await around.peer("a")
        liar = around.hub.network("liar")
        told = 0

        async def lies(peer: PeerId, request: bytes) -> AsyncIterator[bytes]:
            nonlocal told
            for index in range(1000):
                told += 1
                yield bytes(64) + Node(str(index)).record(at=int(clock()))[64:]

        rpc.serve(liar, PROTOCOL, lies)
        await liar.connect(a.network.addresses)
        await trio.testing.wait_all_tasks_blocked()
        assert a.book.refused == {"forged": 1}
        assert a.network.refusals["forged"] == 1
        assert told < 500, "nobody waits for the rest"

    run(tmp_path, story)


def test_an_endless_or_silent_answer_costs_a_bounded_time(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a = await around.peer("a")

        async def drip(peer: PeerId, request: bytes) -> AsyncIterator[bytes]:
            while True:
                await trio.sleep(4)
                yield Node(str(trio.current_time())).record(at=int(clock()))

        for index in range(8):
            slow = around.hub.network(f"slow {index}")
            rpc.serve(slow, PROTOCOL, drip)
            await slow.connect(a.network.addresses)
        honest = await around.peer("honest")
        around.hub.lose(honest.network, a.network)
        await honest.meet(a)
        changes = a.service.changes()
        with trio.fail_after(60):
            while (await anext(changes))[0] != honest.node.operator:
                pass

    run(tmp_path, story)


def test_a_table_is_told_at_a_bounded_pace(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a = await around.peer("a")
        for index in range(200):
            a.book.accept(Node(str(index)).record(at=int(clock()), status=status(64, 64, 128)))
        greedy = around.hub.network("greedy")
        records = await ask(greedy, a.network.peer_id, EVERYTHING)
        assert len(records) == 201
        assert records[0].operator == a.node.operator, "one's own first"
        assert decode(next(iter(a.book.newest()))) == records[1], "then the newest"
        for _ in range(3):
            with pytest.raises(StreamRefused, match="too soon"):
                await ask(greedy, a.network.peer_id, EVERYTHING)
        await trio.sleep(30)
        assert await ask(greedy, a.network.peer_id, EVERYTHING)

    run(tmp_path, story)


def test_only_what_is_lacking_is_told(tmp_path: Path) -> None:
    async def story(around: World) -> None:
        a = await around.peer("a")
        known, news = Node("known").record(at=int(clock())), Node("news").record(at=int(clock()))
        a.book.accept(known)
        a.book.accept(news)
        assert a.announcer.current is not None
        request = msgspec.msgpack.encode(Wanted(CHAIN_ID, known[:8] + a.announcer.current[:8]))
        assert await ask(around.hub.network("b"), a.network.peer_id, request) == [decode(news)]

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("request_", "reason", "penalised"),
    [
        (b"", "not a request", True),
        (b"\x91" * 1000, "not a request", True),
        (msgspec.msgpack.encode([CHAIN_ID, b"", 1]), "not a request", True),
        (msgspec.msgpack.encode(Wanted(1, b"")), "on chain 31337", False),
    ],
)
def test_a_bad_request_is_refused_with_a_reason(tmp_path: Path, request_: bytes, reason: str, penalised: bool) -> None:
    async def story(around: World) -> None:
        a = await around.peer("a")
        stranger = around.hub.network("stranger")
        with pytest.raises(StreamRefused, match=reason):
            await ask(stranger, a.network.peer_id, request_)
        assert ("presence: malformed request" in a.network.refusals) == penalised

    run(tmp_path, story)


def test_what_matters() -> None:
    told = status()
    one, two = digests("x", 2)

    def holding(*slots: bytes) -> Status:
        return msgspec.structs.replace(told, adapters=Adapters.of(slots, (), ()))

    assert not matters(told, status())
    assert not matters(holding(one, two), holding(two, one)), "their order does not"
    assert matters(holding(one), holding(two))
    assert not matters(status(disk=4), status(disk=5))
    assert not matters(status(running=3), status(running=4))
    assert matters(status(running=15), status(running=16)), "full now"
    assert matters(status(queued=0), status(queued=4))
