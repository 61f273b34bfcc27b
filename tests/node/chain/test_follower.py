"""The follower on the fake chain: every event once, in order, on whatever branch the chain ends."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from openlora.contracts import JobExpired, Paid
from openlora.node.chain.follower import Batch, Follower
from openlora.node.errors import ChainError, JournalError, JournalUnwritable, RpcBehind, RpcDown
from openlora.node.job import BlockRef, JobId
from tests.node.chain.fake_chain import ELSEWHERE, QUEUE, Crash, FakeChain, FakeLog, Refusal
from tests.node.chain.world import World


def expired(job_id: int, refund: int = 5) -> FakeLog:
    return FakeLog((JobExpired.TOPIC, job_id.to_bytes(32, "big")), refund.to_bytes(32, "big"))


class Ledger:
    """A consumer whose state is in the journal: job ids by block, kept in the meta table."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.batches: list[Batch] = []
        self.break_at: int | None = None  # raise when this block is applied

    def apply(self, batch: Batch) -> None:
        if batch.upto.number == self.break_at:
            raise Crash
        seen = self.entries()
        if batch.unwound:
            seen = [(block, job_id) for block, job_id in seen if block <= batch.upto.number]
        for occurrence in batch.events:
            assert isinstance(occurrence.event, JobExpired)
            seen.append((occurrence.block.number, occurrence.event.job_id))
        self.world.journal.set_meta("seen", json.dumps(seen))
        self.batches.append(batch)

    def entries(self) -> list[tuple[int, int]]:
        return [(block, job_id) for block, job_id in json.loads(self.world.journal.meta("seen") or "[]")]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    world.open()
    yield world
    await world.kill()


def follower(world: World, *, start_block: int = 1, max_range: int = 4096, live_blocks: int = 64) -> Follower:
    options = {"max_range": max_range, "live_blocks": live_blocks}
    return Follower(world.client, world.journal, [QUEUE], start_block, poll_s=0.01, **options)


async def catch_up(world: World, ledger: Ledger, reader: Follower | None = None) -> None:
    reader = reader or follower(world)
    while await reader.step(ledger.apply) is not None:
        pass


def on_chain(world: World) -> list[tuple[int, int]]:
    logs = [(block.number, log) for block in world.chain.blocks for log in block.logs if log.address == QUEUE]
    return [(number, int.from_bytes(log.topics[1], "big")) for number, log in logs if log.topics[0] == JobExpired.TOPIC]


# ---- reading --------------------------------------------------------------------------------------------------------


async def test_events_come_in_order_and_once(world: World) -> None:
    ledger = Ledger(world)
    world.chain.mine(logs=[expired(1), expired(2)])
    world.chain.mine(3, logs=[expired(3)])
    await catch_up(world, ledger)
    await catch_up(world, ledger)
    assert ledger.entries() == [(1, 1), (1, 2), (2, 3)]
    assert world.journal.cursor == BlockRef(4, world.chain.head.hash)


async def test_reading_starts_at_the_deployment(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 6):
        world.chain.mine(logs=[expired(number)])
    await catch_up(world, ledger, follower(world, start_block=4))
    assert ledger.entries() == [(4, 4), (5, 5)]


async def test_nothing_before_the_deployment_exists(world: World) -> None:
    assert await follower(world, start_block=9).step(Ledger(world).apply) is None


async def test_others_logs_are_passed_over(world: World) -> None:
    ledger = Ledger(world)
    world.chain.mine(
        logs=[FakeLog((b"\x99" * 32,), b""), FakeLog((), b""), expired(1), FakeLog((JobExpired.TOPIC,), b"", ELSEWHERE)]
    )
    await catch_up(world, ledger)
    assert ledger.entries() == [(1, 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        FakeLog((JobExpired.TOPIC, bytes(32)), b"short"),
        FakeLog((Paid.TOPIC, bytes(32), (99).to_bytes(32, "big"), bytes(32)), bytes(32)),
    ],
    ids=["short", "a role that is none"],
)
async def test_a_log_that_does_not_fit_its_abi_is_not_passed_over(world: World, wrong: FakeLog) -> None:
    world.chain.mine(logs=[wrong])
    with pytest.raises(ChainError, match="check the deployment"):
        await follower(world).step(Ledger(world).apply)
    assert world.journal.cursor is None


async def test_a_job_of_a_number_that_no_chain_reaches_is_not_passed_over(world: World) -> None:
    def apply(batch: Batch) -> None:
        for occurrence in batch.events:
            assert isinstance(occurrence.event, JobExpired)
            world.journal.find(JobId(occurrence.event.job_id))

    world.chain.mine(logs=[expired(2**64 - 1)])
    with pytest.raises(ChainError, match="numbers up to block 1 that no chain has"):
        await follower(world).step(apply)
    assert world.journal.cursor is None
    world.chain.blocks[1].logs = [expired(7)]
    await follower(world).step(apply)
    assert world.journal.cursor is not None


async def test_a_long_absence_is_read_in_ranges(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 301):
        world.chain.mine(logs=[expired(number)] if number % 7 == 0 else [])
    await catch_up(world, ledger, follower(world, max_range=100))
    assert ledger.entries() == on_chain(world)
    assert len(ledger.batches) == 3 + 64  # 236 blocks by hundreds, the last 64 one by one
    assert world.provider.asked["eth_getLogs"] == 3 + 64


async def test_ranges_are_halved_until_the_server_takes_them(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 301):
        world.chain.mine(logs=[expired(number)])
    world.provider.fail("eth_getLogs", Refusal("query returned more than 10000 results", -32005), times=5)
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world)
    assert ledger.batches[0].upto.number == 4096 // 2**5


async def test_a_crowded_range_is_read_in_small_batches(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 201):
        world.chain.mine(logs=[expired(number)] * (1000 if number == 30 else 20))
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world)
    ranged = [batch for batch in ledger.batches if batch.upto.number <= 200 - 64]
    assert max(len(batch.events) for batch in ranged if batch.upto.number != 30) <= 256
    assert len(ranged) < 20


async def test_a_server_that_takes_no_range_at_all_is_an_error(world: World) -> None:
    world.chain.mine(100)
    world.provider.fail("eth_getLogs", Refusal("no logs here"), times=20)
    with pytest.raises(ChainError, match="no logs here"):
        await follower(world).step(Ledger(world).apply)


async def test_follow_waits_for_blocks_and_through_trouble(world: World) -> None:
    ledger = Ledger(world)
    world.provider.fail("eth_getBlockByNumber", Refusal("upstream is ill"), times=2)
    batches = follower(world).follow(ledger.apply)
    world.chain.mine(logs=[expired(1)])
    async with asyncio.timeout(5):
        assert (await anext(batches)).events[0].block.number == 1
        waiting = asyncio.ensure_future(anext(batches))
        await world.settle()
        assert not waiting.done()
        world.chain.mine(logs=[expired(2)])
        assert (await waiting).upto.number == 2


# ---- crashes --------------------------------------------------------------------------------------------------------


async def test_an_error_in_the_effect_leaves_cursor_and_effect_as_they_were(world: World) -> None:
    ledger = Ledger(world)
    world.chain.mine(logs=[expired(1)])
    world.chain.mine(logs=[expired(2)])
    ledger.break_at = 2
    with pytest.raises(Crash):
        await catch_up(world, ledger)
    assert ledger.entries() == [(1, 1)]
    ledger.break_at = None
    await catch_up(world, ledger)
    assert ledger.entries() == [(1, 1), (2, 2)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["request", "commit"])
async def test_a_crash_anywhere_loses_and_doubles_no_event(tmp_path: Path, at: str, after: bool) -> None:
    for countdown in itertools.count():
        world = World(tmp_path / str(countdown))
        world.open()
        world.chain.mine(10, logs=[expired(1)])
        world.chain.mine(2, logs=[expired(2)])
        await catch_up(world, Ledger(world), follower(world, live_blocks=3))
        world.chain.reorg(2, longer_by=0)
        world.chain.mine(logs=[expired(3)])
        part = world.provider if at == "request" else world.journal
        part.crash_in, part.crash_after = countdown, after
        crashing = world.begin(catch_up(world, Ledger(world), follower(world, live_blocks=3)))
        await asyncio.wait([crashing])
        crashed = isinstance(crashing.exception(), Crash)
        await world.kill()
        world.open()
        await catch_up(world, Ledger(world))
        assert Ledger(world).entries() == on_chain(world) == [(1, 1), (13, 3)]
        await world.kill()
        if not crashed:
            break
    assert countdown >= (10 if at == "request" else 4)


# ---- reorganisations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 17, 64, 65, 200])
async def test_a_reorganisation_unwinds_to_the_common_ancestor(world: World, depth: int) -> None:
    ledger = Ledger(world)
    for number in range(1, depth + 4):
        world.chain.mine(logs=[expired(number)])
    await catch_up(world, ledger, follower(world, live_blocks=300))
    world.chain.reorg(depth)
    world.chain.mine(logs=[expired(999)])
    await catch_up(world, ledger)
    unwound = [batch for batch in ledger.batches if batch.unwound]
    assert [batch.upto.number for batch in unwound] == [3]
    assert ledger.entries() == on_chain(world)
    assert ledger.entries()[-1][1] == 999


@pytest.mark.parametrize("requests", range(12))
async def test_a_reorganisation_between_any_two_requests(world: World, requests: int) -> None:
    ledger = Ledger(world)
    world.chain.mine(logs=[expired(1)])
    world.chain.mine(logs=[expired(2)])
    await catch_up(world, ledger)
    for number in range(3, 7):
        world.chain.mine(logs=[expired(number)])

    def fork() -> None:
        world.chain.reorg(5, longer_by=0)
        world.chain.mine(logs=[expired(99)])

    world.provider.meanwhile = (requests, fork)
    for _ in range(20):
        with suppress(ChainError):
            await follower(world).step(ledger.apply)
    assert world.provider.meanwhile is None
    assert ledger.entries() == on_chain(world) == [(1, 1), (7, 99)]


async def test_a_reorganisation_to_a_shorter_chain(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 11):
        world.chain.mine(logs=[expired(number)])
    await catch_up(world, ledger)
    world.chain.reorg(5, longer_by=-2)
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world)
    assert world.journal.cursor == BlockRef(8, world.chain.head.hash)


async def test_a_server_that_lags_is_no_reorganisation(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 11):
        world.chain.mine(logs=[expired(number)])
    await catch_up(world, ledger)
    ahead, world.chain.blocks = world.chain.blocks, world.chain.blocks[:7]
    assert await follower(world).step(ledger.apply) is None
    world.chain.blocks = ahead
    assert await follower(world).step(ledger.apply) is None
    assert not any(batch.unwound for batch in ledger.batches)


@pytest.mark.parametrize("behind", [1, 2, 5])
async def test_a_server_that_lags_behind_the_one_before_it_is_no_reorganisation(world: World, behind: int) -> None:
    """One URL, several servers: the head comes from one of them and the block asked for from another."""
    ledger = Ledger(world)
    for number in range(1, 11):
        world.chain.mine(logs=[expired(number)])
    await catch_up(world, ledger)
    world.chain.mine(2)
    ahead = world.chain.blocks

    def lag() -> None:
        world.chain.blocks = ahead[: 11 - behind]

    world.provider.meanwhile = (1, lag)
    with pytest.raises(RpcBehind, match="the RPC has no block 10 yet"):
        await follower(world).step(ledger.apply)
    world.chain.blocks = ahead
    await catch_up(world, ledger)
    assert not any(batch.unwound for batch in ledger.batches)
    assert ledger.entries() == on_chain(world)


async def test_logs_shown_twice_or_taken_back_count_once(world: World) -> None:
    class Stutters(FakeChain):
        def eth_getLogs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
            found = super().eth_getLogs(query)
            return [*reversed(found), *found, *({**log, "removed": True, "blockHash": None} for log in found)]

    world.chain = world.provider.chain = Stutters()
    ledger = Ledger(world)
    world.chain.mine(logs=[expired(1), expired(2)])
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world) == [(1, 1), (1, 2)]


@pytest.mark.parametrize("wrong", [{"blockNumber": "0x7"}, {"blockHash": "0x" + "77" * 32}, {"data": None}])
async def test_logs_of_other_blocks_are_no_answer(world: World, wrong: dict[str, Any]) -> None:
    class Strays(FakeChain):
        def eth_getLogs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
            return [{**log, **wrong} for log in super().eth_getLogs(query)]

    world.chain = world.provider.chain = Strays()
    world.chain.mine(logs=[expired(1)])
    with pytest.raises(RpcDown):
        await catch_up(world, Ledger(world))
    assert world.journal.cursor is None


# ---- the second look ------------------------------------------------------------------------------------------------


class KeepsBack(FakeChain):
    """Shows only `shown` logs of each block: always, or where it is asked for one block by its hash."""

    def __init__(self, shown: int, *, always: bool) -> None:
        super().__init__()
        self.shown = shown
        self.always = always

    def eth_getLogs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        found = super().eth_getLogs(query)
        keep_back = self.always or "blockHash" in query
        return [log for log in found if int(log["logIndex"], 16) < self.shown] if keep_back else found


async def live(world: World, ledger: Ledger, blocks: int) -> None:
    for _ in range(blocks):
        world.chain.mine()
        for liar in world.liars:
            liar.blocks = world.chain.blocks
        await catch_up(world, ledger)


@pytest.mark.parametrize("shown", [0, 1])
@pytest.mark.parametrize("restarted", [False, True])
async def test_what_a_server_showed_late_is_read_anew(world: World, shown: int, restarted: bool) -> None:
    world.chain = world.provider.chain = KeepsBack(shown, always=False)
    ledger = Ledger(world)
    await live(world, ledger, 9)
    world.chain.mine(logs=[expired(1), expired(2)])
    await live(world, ledger, 64)
    assert len(ledger.entries()) == shown
    if restarted:
        await world.kill()
        world.open()
    await live(world, ledger, 16)
    assert ledger.entries() == on_chain(world) == [(10, 1), (10, 2)]
    assert sum(batch.unwound for batch in ledger.batches) == 1


async def test_what_one_server_keeps_back_another_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path)
    world.liars = [KeepsBack(0, always=True)]
    world.open()
    ledger = Ledger(world)
    await live(world, ledger, 9)
    world.chain.mine(logs=[expired(1)])
    await live(world, ledger, 80)
    assert ledger.entries() == on_chain(world) == [(10, 1)]
    assert "event=logs_kept_back block=10 blocks=1" in caplog.text
    world.chain.mine(logs=[expired(2)])
    await live(world, ledger, 1)
    assert ledger.entries() == on_chain(world), "the one that keeps back is asked last"
    await world.kill()


@pytest.mark.parametrize("refuses", [False, True], ids=["shows less", "refuses"])
async def test_a_poor_answer_at_the_second_look_takes_nothing_back(world: World, refuses: bool) -> None:
    class Poor(FakeChain):
        def eth_getLogs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
            if "blockHash" in query:
                return super().eth_getLogs(query)
            if refuses:
                raise Refusal("no ranges here")
            return []

    world.chain = world.provider.chain = Poor()
    ledger = Ledger(world)
    world.chain.mine(logs=[expired(1)])
    await live(world, ledger, 100)
    assert ledger.entries() == [(1, 1)]
    assert not any(batch.unwound for batch in ledger.batches)


async def test_a_second_look_costs_a_request_for_eight_blocks(world: World) -> None:
    ledger = Ledger(world)
    await live(world, ledger, 64 + 80)
    assert world.provider.asked["eth_getLogs"] == 64 + 80 + 10


# ---- servers --------------------------------------------------------------------------------------------------------


async def test_a_server_that_falls_silent_over_a_range_is_asked_for_less(world: World) -> None:
    ledger = Ledger(world)
    world.chain.mine(199, logs=[expired(1)])
    reader = follower(world, live_blocks=8)
    world.provider.fail("eth_getLogs", TimeoutError())
    for _ in range(50):
        with suppress(RpcDown):
            if await reader.step(ledger.apply) is None:
                break
        world.now += 1
    assert ledger.entries() == on_chain(world)
    assert ledger.batches[0].upto.number < 100


async def test_catching_up_waits_through_trouble(world: World) -> None:
    ledger = Ledger(world)
    for number in range(1, 4):
        world.chain.mine(logs=[expired(number)])
    world.provider.fail("eth_getLogs", Refusal("header not found"), times=2)
    full_disk = [JournalUnwritable("the disk is full")]

    def apply(batch: Batch) -> None:
        if full_disk:
            raise full_disk.pop()
        ledger.apply(batch)

    await follower(world).catch_up(apply)
    assert ledger.entries() == on_chain(world)


async def test_a_reorganisation_deeper_than_memory_goes_back_to_a_checkpoint(world: World) -> None:
    ledger = Ledger(world)
    world.chain.mine(1030, logs=[expired(1)])
    await catch_up(world, ledger, follower(world, max_range=64))
    world.chain.mine(400, logs=[expired(2)])
    await catch_up(world, ledger)
    world.chain.reorg(401)
    world.chain.mine(logs=[expired(3)])
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world) == [(1, 1), (1432, 3)]


async def test_a_chain_that_was_reset_is_refused(world: World) -> None:
    world.chain.mine(5)
    await catch_up(world, Ledger(world))
    world.chain.reorg(5)
    with pytest.raises(JournalError, match="it was reset"):
        await catch_up(world, Ledger(world))


async def test_a_server_that_syncs_anew_is_not_another_chain(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.liars = [FakeChain()]
    world.open()
    ledger = Ledger(world)
    for chain in (*world.liars, world.chain):
        chain.mine(6)
    reader = follower(world, start_block=4)
    await catch_up(world, ledger, reader)
    ahead, world.chain.blocks = world.chain.blocks, world.chain.blocks[:2]
    assert world.client.doubt(world.client.doubts), "the one that syncs is asked from now on"
    with pytest.raises(RpcBehind, match="up to 1 only, and the journal begins at 4"):
        await reader.step(ledger.apply)
    world.chain.blocks = ahead
    world.chain.mine(logs=[expired(1)])
    await catch_up(world, ledger, reader)
    assert ledger.entries() == [(7, 1)]
    await world.kill()


@pytest.mark.parametrize("depth", [70, 100], ids=["a deep reorganisation", "another chain"])
async def test_what_one_rpc_alone_takes_back_is_not_taken_back(tmp_path: Path, depth: int) -> None:
    world = World(tmp_path)
    world.liars = [FakeChain()]
    world.open()
    ledger = Ledger(world)
    for chain in (*world.liars, world.chain):
        chain.mine(logs=[expired(1)])
        chain.mine(99)
    await catch_up(world, ledger)
    world.liars[0].reorg(depth)
    world.chain.mine(logs=[expired(2)])
    async with asyncio.timeout(5):
        await follower(world).catch_up(ledger.apply)
    assert ledger.entries() == [(1, 1), (101, 2)]
    assert not any(batch.unwound for batch in ledger.batches)
    await world.kill()


async def test_trouble_is_told_of_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.provider.fail("eth_getBlockByNumber", Refusal("upstream is ill"), times=3)
    async with asyncio.timeout(5):
        await follower(world).catch_up(Ledger(world).apply)
    assert not world.provider.faults
    assert caplog.text.count("follower_waits") == 1


async def test_random_branches_always_end_in_the_canonical_view(world: World) -> None:
    dice = random.Random(7)
    ledger = Ledger(world)
    world.chain.mine(3)
    for number in range(80):
        world.chain.mine(logs=[expired(number)] * dice.randrange(3))
        if dice.random() < 0.3:
            depth = dice.randrange(1, min(len(world.chain.blocks) - 2, 40))
            world.chain.reorg(depth, longer_by=dice.randrange(3))
        for _ in range(dice.randrange(6)):
            await follower(world).step(ledger.apply)
    await catch_up(world, ledger)
    assert ledger.entries() == on_chain(world)
