"""The sole sender on the fake chain: each named failure, one test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError

from openlora.node.chain.outbox import IntentState
from openlora.node.chain.sender import RECEIPTS_AT_ONCE, SenderOptions
from openlora.node.chain.transaction import FeePolicy
from openlora.node.chain.types import TxReceipt
from openlora.node.errors import ChainError, JournalError, JournalUnwritable, Reverted, RpcBehind, RpcError
from tests.node.chain.fake_chain import GWEI, QUEUE, FakeChain, Refusal, effect
from tests.node.chain.world import World, foreign


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start()
    yield world
    await world.kill()


def bytes_of(world: World, key: str) -> list[bytes]:
    return [attempt.signed.raw for attempt in world.outbox.attempts(key)]


# ---- sending --------------------------------------------------------------------------------------------------------


async def test_a_call_is_mined_and_its_receipt_returned(world: World) -> None:
    sending = world.send("claim")
    await world.tick()
    assert not sending.done()
    world.chain.mine()
    await world.tick()
    receipt = sending.result()
    assert receipt.block.number == 1
    assert world.chain.effects() == {b"claim": 1}
    assert world.outbox.gas_cost_wei() == receipt.cost_wei == 50_000 * 2 * GWEI


async def test_the_loop_does_it_alone(tmp_path: Path) -> None:
    world = World(tmp_path, automine=True, options=SenderOptions(poll_s=30.0))
    await world.start()
    world.begin(world.sender.run())
    async with asyncio.timeout(2):  # far less than the poll interval: a send wakes the loop
        assert (await world.sender.send("claim", effect("claim"))).succeeded
    await world.kill()


async def test_one_key_is_one_effect(world: World) -> None:
    first, second = world.send("claim"), world.begin(world.sender.send("claim", effect("claim")))
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert first.result() == second.result()
    assert await world.sender.send("claim", effect("claim")) == first.result()
    assert world.chain.effects() == {b"claim": 1}


async def test_one_key_is_one_call(world: World) -> None:
    world.send("claim")
    await world.settle()
    with pytest.raises(JournalError, match="journalled for another call"):
        await world.sender.send("claim", effect("commit"))


async def test_sixteen_are_in_flight_and_the_next_waits(world: World) -> None:
    for number in range(18):
        world.send(f"job{number}")
    await world.tick()
    assert world.sender.in_flight == 16
    world.chain.mine()
    await world.tick(3)
    world.chain.mine()
    await world.tick()
    assert sorted(world.chain.effects().values()) == [1] * 18
    assert all(task.done() for task in world.tasks.values())


async def test_the_receipts_of_one_look_are_asked_for_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, most, receipt = 0, 0, world.client.receipt

    async def slow(tx_hash: bytes) -> TxReceipt | None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        return await receipt(tx_hash)

    for number in range(12):
        world.send(f"job{number}")
    await world.tick()
    world.chain.mine()
    monkeypatch.setattr(world.client, "receipt", slow)
    await world.tick()
    assert most == RECEIPTS_AT_ONCE
    assert all(task.done() for task in world.tasks.values())


async def test_a_receipt_that_fails_holds_up_none_before_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = world.client.receipt
    first, last = world.send("first"), world.send("last")
    await world.tick()
    world.chain.mine()
    refused = {attempt.signed.hash for attempt in world.outbox.attempts("last")}

    async def failing(tx_hash: bytes) -> TxReceipt | None:
        if tx_hash in refused:
            raise RpcError(-32000, "header not found", None)
        return await receipt(tx_hash)

    monkeypatch.setattr(world.client, "receipt", failing)
    with pytest.raises(RpcError):
        await world.tick()
    monkeypatch.undo()
    found = world.outbox.find("first")
    assert found is not None
    assert found.state is IntentState.MINED
    await world.tick()
    assert first.done()
    assert last.done()


async def test_send_returns_at_the_asked_depth(world: World) -> None:
    early, late = world.send("claim"), world.begin(world.sender.send("claim", effect("claim"), confirmations=3))
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert early.done()
    assert not late.done()
    world.chain.mine(2)
    await world.tick()
    assert late.done()


# ---- refusals before anything is signed -----------------------------------------------------------------------------


async def test_a_call_that_would_revert_burns_no_nonce(world: World) -> None:
    world.chain.reverting.add(b"claim")
    with pytest.raises(Reverted, match="job 17 is claimed") as raised:
        await world.sender.send("claim", effect("claim"))
    assert raised.value.name == "WrongState"
    assert world.outbox.find("claim") is None
    assert world.outbox.next_nonce() == 0


@pytest.mark.parametrize("by", ["its own look", "the follower"])
async def test_what_only_a_lagging_server_refuses_is_not_refused(world: World, by: str) -> None:
    world.chain.too_early.add(b"a")
    world.chain.mine(3)
    if by == "its own look":
        await world.tick()
    else:
        world.journal.advance((await world.client.block("latest")).ref)
    with pytest.raises(RpcBehind, match="but not at block 3"):
        await world.sender.send("a", effect("a"))
    assert world.outbox.find("a") is None
    world.chain.too_early.clear()
    task = world.send("a")
    await world.settle()
    world.chain.mine()
    await world.tick()
    assert (await task).succeeded


async def test_a_low_balance_is_said_before_signing(world: World) -> None:
    world.chain.balance = 10**9
    with pytest.raises(ChainError, match=r"holds 1000000000 wei and needs .* top it up"):
        await world.sender.send("claim", effect("claim"))
    assert world.outbox.find("claim") is None


async def test_the_balance_must_cover_what_is_in_flight(world: World) -> None:
    world.chain.balance = 300_000 * GWEI  # one transaction may cost 75,000 gas * 3 gwei
    world.send("one")
    await world.settle()
    with pytest.raises(ChainError, match="top it up"):
        await world.sender.send("two", effect("two"))


async def test_gas_above_the_cap_is_said_before_signing(world: World) -> None:
    world.chain.base_fee = 600 * GWEI
    with pytest.raises(ChainError, match=r"gas costs 601\.000 gwei, and chain\.max_gas_gwei is 500\.000"):
        await world.sender.send("claim", effect("claim"))
    assert world.outbox.find("claim") is None


async def test_a_suggested_tip_is_followed_below_its_cap_alone(world: World) -> None:
    world.chain.tip = 400 * GWEI
    world.send("claim")
    await world.settle()
    fees = world.outbox.attempts("claim")[0].signed.fees
    assert fees.max_fee_wei == 2 * GWEI + fees.tip_wei
    assert 35 * GWEI < fees.tip_wei < 36 * GWEI


async def test_nothing_is_signed_before_start(tmp_path: Path) -> None:
    world = World(tmp_path, options=SenderOptions(poll_s=0.001))
    world.open()
    with pytest.raises(AssertionError, match="start"):
        await world.sender.send("claim", effect("claim"))
    world.provider.fail("eth_getBlockByNumber", Refusal("upstream is ill"), times=10)
    with pytest.raises(ChainError):
        await world.sender.start()
    with pytest.raises(AssertionError, match="start"):
        await world.sender.send("claim", effect("claim"))
    await world.kill()


async def test_a_journal_that_cannot_be_written_sends_nothing(world: World) -> None:
    world.journal.rows("PRAGMA query_only = ON")
    with pytest.raises(JournalUnwritable, match="free disk space"):
        await world.sender.send("claim", effect("claim"))
    assert world.provider.asked["eth_sendRawTransaction"] == 0
    world.journal.rows("PRAGMA query_only = OFF")
    world.send("claim")
    await world.tick()
    assert len(world.chain.pool) == 1


async def test_a_full_disk_is_waited_out(world: World) -> None:
    sending = world.send("claim")
    await world.settle()
    world.chain.mine()
    world.journal.rows("PRAGMA query_only = ON")
    with pytest.raises(JournalUnwritable):
        await world.tick()
    assert not sending.done()
    world.journal.rows("PRAGMA query_only = OFF")
    await world.tick()
    assert sending.result().succeeded


# ---- what servers answer to a send ----------------------------------------------------------------------------------

ANSWERS = [
    Refusal("already known"),
    Refusal("nonce too low"),
    Refusal("nonce too high"),
    Refusal("replacement transaction underpriced"),
    Refusal("transaction underpriced"),
    Refusal("insufficient funds for gas * price + value"),
    Refusal("txpool is full"),
    Refusal("internal error", -32603),
    ClientConnectionError(),
    TimeoutError(),
]


@pytest.mark.parametrize("got_through", [True, False], ids=["landed", "lost"])
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
async def test_whatever_a_server_answers_the_chain_decides(world: World, answer: Exception, got_through: bool) -> None:
    world.provider.fail("eth_sendRawTransaction", answer, got_through=got_through)
    sending = world.send("claim")
    for _ in range(3):
        await world.settle()
        world.now += 16  # past the endpoint's rest and the time to send again
        await world.sender.tick()
        world.chain.mine()
    await world.tick()
    assert sending.result().succeeded
    assert world.chain.effects() == {b"claim": 1}
    assert len(bytes_of(world, "claim")) == 1  # always the same bytes


async def test_a_revert_on_chain_is_raised_with_its_reason(world: World) -> None:
    sending = world.send("claim")
    await world.settle()
    world.chain.reverting.add(b"claim")  # somebody else was faster
    world.chain.mine()
    await world.tick()
    with pytest.raises(Reverted, match="job 17 is claimed") as raised:
        sending.result()
    assert raised.value.name == "WrongState"
    with pytest.raises(Reverted):
        await world.sender.send("claim", effect("claim"))  # and again after the fact
    assert world.outbox.next_nonce() == 1


async def test_a_dropped_transaction_is_sent_again_as_the_same_bytes(world: World) -> None:
    world.send("claim")
    await world.tick()
    world.chain.pool.clear()
    await world.tick(later_s=16)
    assert len(world.chain.pool) == 1
    assert len(bytes_of(world, "claim")) == 1


# ---- fees -----------------------------------------------------------------------------------------------------------


async def test_what_is_not_mined_is_replaced_by_a_dearer_one(world: World) -> None:
    sending = world.send("claim")
    await world.tick()
    world.chain.base_fee = 10 * GWEI  # above the bid of 3 gwei
    world.chain.mine()
    await world.tick(later_s=31)
    new, old = world.outbox.attempts("claim")
    assert new.signed.nonce == old.signed.nonce
    assert new.signed.fees.max_fee_wei == 21 * GWEI
    assert new.signed.fees.tip_wei == old.signed.fees.tip_wei * 9 // 8
    world.chain.mine()
    await world.tick()
    assert sending.result().tx_hash == new.signed.hash
    assert world.chain.effects() == {b"claim": 1}


async def test_the_older_version_is_recognised_when_it_lands(world: World) -> None:
    sending = world.send("claim")
    await world.tick()
    old = world.outbox.attempts("claim")[0].signed
    await world.pass_over()
    world.chain.inject(old.raw)
    await world.tick()
    assert sending.result().tx_hash == old.hash
    assert world.chain.effects() == {b"claim": 1}


async def test_a_bump_is_at_least_an_eighth(world: World) -> None:
    world.send("claim")
    await world.tick()
    await world.pass_over(5)
    fees = [attempt.signed.fees for attempt in reversed(world.outbox.attempts("claim"))]
    assert len(fees) == 6
    for before, after in itertools.pairwise(fees):
        assert 8 * after.max_fee_wei >= 9 * before.max_fee_wei
        assert 8 * after.tip_wei >= 9 * before.tip_wei
    assert next(iter(world.chain.pool.values())).hash == world.outbox.attempts("claim")[0].signed.hash


async def test_the_cap_ends_the_bumping(tmp_path: Path) -> None:
    world = World(tmp_path, options=SenderOptions(fees=FeePolicy(cap_wei=4 * GWEI)))
    await world.start()
    world.send("claim")
    await world.tick()
    await world.pass_over(20)
    assert [attempt.signed.fees.max_fee_wei <= 4 * GWEI for attempt in world.outbox.attempts("claim")] == [True] * 3
    await world.kill()


async def test_no_bump_exceeds_the_tips_cap(world: World) -> None:
    world.chain.tip = 400 * GWEI
    world.send("claim")
    await world.tick()
    await world.pass_over(20)
    tips = [attempt.signed.fees.tip_wei for attempt in world.outbox.attempts("claim")]
    assert len(tips) == 4, "a suggestion leaves room for bids that a higher base fee asks for"
    assert max(tips) <= 50 * GWEI


async def test_while_no_block_comes_nothing_is_bid_higher(world: World) -> None:
    sent = world.send("claim")
    await world.tick()
    await world.tick(20, later_s=31)
    assert len(bytes_of(world, "claim")) == 1, "a chain that stands still takes no dearer one either"
    world.chain.mine()
    await world.tick()
    assert sent.result().succeeded


async def test_what_does_not_pay_the_base_fee_is_replaced_soon(world: World) -> None:
    sent = world.send("claim")
    await world.settle()
    world.chain.base_fee *= 50
    world.chain.mine()
    await world.tick()
    await world.tick(later_s=4)
    world.chain.mine()
    await world.tick()
    assert sent.result().succeeded


async def test_gas_above_the_cap_is_waited_out_and_nothing_else_waits(world: World) -> None:
    first = world.send("first")
    await world.settle()
    world.chain.mine()
    second = world.send("second")
    await world.settle()
    world.chain.base_fee = 600 * GWEI
    await world.tick(3, later_s=31)
    assert first.result().succeeded
    world.chain.base_fee = GWEI
    world.chain.mine()
    await world.tick()
    assert second.result().succeeded


async def test_a_bid_at_the_cap_is_told_of_now_and_then(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.send("claim")
    await world.tick()
    world.chain.base_fee = 600 * GWEI
    world.chain.mine()
    await world.tick(60, later_s=1)
    assert caplog.text.count("fee_cap_reached") == 2


async def test_only_the_next_in_line_is_bumped(world: World) -> None:
    for name in ("one", "two", "three"):
        world.send(name)
        await world.settle()
    await world.tick()
    await world.pass_over()
    assert [len(bytes_of(world, name)) for name in ("one", "two", "three")] == [2, 1, 1]


# ---- restarts -------------------------------------------------------------------------------------------------------


async def test_after_a_restart_the_same_bytes_go_again(world: World) -> None:
    world.send("claim")
    await world.settle()
    before = bytes_of(world, "claim")
    world.chain.pool.clear()
    world.now += 1_000  # long enough to bump, had the agent been alive
    await world.restart()
    assert len(world.chain.pool) == 1
    assert bytes_of(world, "claim") == before
    world.chain.mine()
    await world.tick()
    assert (await world.sender.send("claim", effect("claim"))).succeeded


async def test_what_landed_while_we_were_down_is_recognised(world: World) -> None:
    world.send("claim")
    await world.settle()
    await world.kill()
    world.chain.mine(3)
    await world.start()
    assert (await world.sender.send("claim", effect("claim"))).block.number == 1
    assert world.provider.asked["eth_sendRawTransaction"] == 0


async def crash_and_recover(world: World, plan: Callable[[World], None]) -> bool:
    """Sends two intents with a crash planned, then starts again and sends them again; whether the crash came."""
    plan(world)
    for name in ("claim", "commit"):
        world.send(name)
    for _ in range(3):
        await world.settle()
        world.begin(world.loop())
        await world.settle()
        world.chain.mine()
    crashed = world.crashed()
    await world.restart()
    for name in ("claim", "commit"):
        world.send(name)
    for _ in range(3):
        await world.tick(later_s=16)
        world.chain.mine()
    await world.tick()
    assert all(task.result().succeeded for task in world.tasks.values())
    assert world.chain.effects() == {b"claim": 1, b"commit": 1}
    return crashed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", ["request", "commit"])
async def test_a_crash_anywhere_loses_and_doubles_nothing(tmp_path: Path, at: str, after: bool) -> None:
    for countdown in itertools.count():
        world = World(tmp_path / str(countdown))
        await world.start()

        def plan(world: World, countdown: int = countdown) -> None:
            part = world.provider if at == "request" else world.journal
            part.crash_in, part.crash_after = countdown, after

        crashed = await crash_and_recover(world, plan)
        await world.kill()
        if not crashed:
            break
    assert countdown >= (20 if at == "request" else 4)


# ---- reorganisations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True], ids=["forgotten", "back in the pool"])
@pytest.mark.parametrize("depth", [1, 2, 5, 33])
async def test_a_reorganised_transaction_goes_again_as_the_same_bytes(world: World, depth: int, keep: bool) -> None:
    sending = world.send("claim")
    await world.settle()
    world.chain.mine(depth)
    await world.tick(later_s=100)
    assert sending.result().block.number == 1
    world.chain.reorg(depth, keep=keep)
    assert not world.chain.effects()
    await world.tick(2)
    world.chain.mine()
    await world.tick()
    assert world.chain.effects() == {b"claim": 1}
    assert len(bytes_of(world, "claim")) == 1
    moved = world.outbox.find("claim")
    assert moved is not None
    assert moved.receipt is not None
    assert moved.receipt.block.hash == world.chain.head.hash


async def test_a_reorganisation_while_we_were_down_is_noticed(world: World) -> None:
    sending = world.send("claim")
    await world.settle()
    world.chain.mine()
    await world.tick()
    assert sending.done()
    await world.kill()
    world.chain.reorg(1)
    await world.start()
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert world.chain.effects() == {b"claim": 1}


async def test_what_is_deep_is_not_looked_at_again(world: World) -> None:
    world.send("claim")
    await world.settle()
    world.chain.mine(64)
    await world.tick()
    found = world.outbox.find("claim")
    assert found is not None
    assert found.state is IntentState.FINAL
    world.chain.mine(2)
    await world.tick()
    assert world.provider.asked["eth_getTransactionReceipt"] == 1


async def test_a_reorganisation_deeper_than_final_is_learnt_from_the_journal(world: World) -> None:
    world.send("claim")
    await world.settle()
    world.chain.mine(70)
    await world.tick()
    world.chain.reorg(70)
    await world.tick()
    assert not world.chain.pool  # it was final: nobody looks
    world.journal.unwind(0)  # as the follower does
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert world.chain.effects() == {b"claim": 1}
    assert len(bytes_of(world, "claim")) == 1


async def test_what_ran_out_of_gas_is_sent_again_with_more(world: World) -> None:
    """An RPC's estimate was too low: a commit that fails so would cost the bond."""
    world.chain.estimate, world.chain.needs = 21_000, {b"commit": 100_000}
    sent = world.send("commit")
    for _ in range(4):
        await world.settle()
        world.chain.mine()
        await world.tick()
    assert sent.result().succeeded
    assert world.chain.effects() == {b"commit": 1}
    assert [attempt.signed.nonce for attempt in world.outbox.attempts("commit")] == [2, 1, 0]


async def test_what_ran_out_of_gas_and_would_revert_now_is_not_sent_again(world: World) -> None:
    world.chain.needs = {b"commit": 100_000}
    sent = world.send("commit")
    await world.settle()
    world.chain.mine()
    world.chain.reverting.add(b"commit")
    await world.tick()
    assert isinstance(sent.exception(), Reverted)
    assert len(bytes_of(world, "commit")) == 1


async def test_gas_that_no_transaction_may_have_is_said_before_signing(world: World) -> None:
    """It would never be mined, and every later nonce would wait for it."""
    world.chain.estimate = 10**9
    with pytest.raises(ChainError, match="1,500,000,000 gas, and a transaction may have 16,777,216"):
        await world.sender.send("claim", effect("claim"))
    assert world.outbox.find("claim") is None


# ---- other hands on the key -----------------------------------------------------------------------------------------


async def test_a_second_agent_stops_the_signing(world: World) -> None:
    waiting = world.send("claim")
    await world.settle()
    world.chain.inject(foreign(0, to=QUEUE, data=b"claim-by-another"))
    with pytest.raises(JournalError, match=r"called job_queue with the hot key .* another agent"):
        await world.tick()
    await world.settle()
    assert isinstance(waiting.exception(), JournalError)
    with pytest.raises(JournalError):
        await world.sender.send("more", effect("more"))
    with pytest.raises(JournalError):
        await world.sender.tick()


async def test_a_second_agent_is_noticed_when_we_are_idle(world: World) -> None:
    world.chain.inject(foreign(0, to=QUEUE, data=b"claim-by-another"))
    with pytest.raises(JournalError, match="another agent"):
        await world.tick()


async def test_a_second_agent_that_one_rpc_alone_shows_is_none(tmp_path: Path) -> None:
    world = World(tmp_path, automine=True)
    world.liars = [FakeChain()]
    await world.start()
    (liar,) = world.liars
    liar.inject(foreign(0, to=QUEUE, data=b"claim-by-another"))
    with pytest.raises(RpcBehind, match=r"another agent uses the key.*another is asked"):
        await world.sender.tick()
    sent = world.send("claim")
    await world.tick(2)
    assert sent.result().succeeded
    world.chain.inject(foreign(1, to=QUEUE, data=b"claim-by-another"))
    with pytest.raises(JournalError, match="another agent"):
        await world.tick()
    await world.kill()


class KeepsReceipts(FakeChain):
    """Shows another's chain without its receipts."""

    def __init__(self, shown: FakeChain) -> None:
        super().__init__()
        self._shown = shown

    def answer(self, method: str, params: list[Any]) -> Any:
        return None if method == "eth_getTransactionReceipt" else self._shown.answer(method, params)


async def test_a_receipt_that_one_rpc_keeps_back_is_asked_of_another(tmp_path: Path) -> None:
    world = World(tmp_path, automine=True)
    world.liars = [KeepsReceipts(world.chain)]
    await world.start()
    sent = world.send("claim")
    await world.tick(3)
    assert not sent.done()
    with pytest.raises(RpcBehind, match="for 31 s the RPC has shown no receipt of claim"):
        await world.tick(later_s=31)
    await world.tick()
    assert sent.result().succeeded
    await world.kill()


async def test_a_harmless_transfer_is_recorded_and_survived(world: World) -> None:
    world.chain.inject(foreign(0))
    await world.tick()
    sending = world.send("claim")
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert sending.result().succeeded
    assert world.outbox.is_foreign(0)
    assert world.outbox.attempts("claim")[0].signed.nonce == 1


async def test_a_harmless_transfer_that_takes_our_nonce_costs_us_a_new_one(world: World) -> None:
    sending = world.send("claim")
    await world.settle()
    world.chain.inject(foreign(0))
    await world.tick()
    world.chain.mine()
    await world.tick()
    assert sending.result().succeeded
    assert [attempt.signed.nonce for attempt in world.outbox.attempts("claim")] == [1, 0]
    assert world.chain.effects()[b"claim"] == 1


async def test_a_hole_left_by_a_dropped_transfer_is_filled(world: World) -> None:
    world.chain.inject(foreign(0))
    await world.tick()
    sending = world.send("claim")
    await world.settle()
    world.chain.reorg(1)
    await world.tick()
    assert not sending.done()
    await world.tick(later_s=31)
    world.chain.mine()
    await world.tick()
    assert sending.result().succeeded
    assert world.chain.effects()[b"claim"] == 1


async def test_the_filler_yields_to_the_transfer_come_back(world: World) -> None:
    world.chain.inject(foreign(0))
    await world.tick()
    sending = world.send("claim")
    await world.settle()
    world.chain.reorg(1)
    await world.tick()
    await world.tick(later_s=31)
    world.chain.inject(foreign(0))
    await world.tick()
    assert sending.result().succeeded
    assert world.sender.in_flight == 0
    assert world.outbox.find("gap:0") is None


async def test_an_old_copy_of_the_journal_is_noticed(world: World) -> None:
    await world.kill()
    copy = (world.folder / "journal.sqlite").read_bytes()
    await world.start()
    world.send("claim")
    await world.settle()
    world.chain.mine()
    await world.tick()
    await world.kill()
    for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
        (world.folder / name).unlink(missing_ok=True)
    (world.folder / "journal.sqlite").write_bytes(copy)
    with pytest.raises(JournalError, match="old copy"):
        await world.start()


async def test_a_used_key_with_a_new_journal_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.chain.inject(foreign(0, to=QUEUE))
    with pytest.raises(JournalError, match="has sent 1 transactions and this journal knows none"):
        await world.start()
    await world.kill()


async def test_an_unexplained_nonce_is_given_some_looks_at_start(tmp_path: Path) -> None:
    world = World(tmp_path, options=SenderOptions(poll_s=0.001))
    await world.start()
    await world.kill()
    world.chain.inject(foreign(0))
    world.chain.mine(300)
    world.chain.forgotten = 200
    with pytest.raises(JournalError, match="that no configured RPC can show"):
        await world.start()
    await world.kill()


async def test_a_start_among_servers_that_lag_looks_again(tmp_path: Path) -> None:
    world = World(tmp_path, options=SenderOptions(poll_s=0.001))
    world.open()
    world.provider.fail("eth_getTransactionCount", Refusal("header not found"), times=3)
    await world.sender.start()
    await world.kill()


async def test_an_unexplained_nonce_is_given_time_while_running(world: World) -> None:
    world.chain.inject(foreign(0))
    world.chain.mine(2)
    world.provider.fail("eth_getTransactionCount", Refusal("header not found"), times=1)
    with pytest.raises(ChainError, match="header not found"):
        await world.tick()
    world.chain.forgotten = 1
    with pytest.raises(ChainError, match="does not show yet"):
        await world.tick()
    world.send("claim")
    await world.settle()
    assert world.outbox.find("claim") is None  # nothing is signed while the next nonce is in doubt
    world.chain.forgotten = -1
    await world.tick()
    assert world.outbox.is_foreign(0)
    assert world.outbox.attempts("claim")[0].signed.nonce == 1


async def test_rpc_trouble_is_waited_out_by_the_loop_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, automine=True, options=SenderOptions(poll_s=0.01))
    await world.start()
    sending = world.send("claim")
    await world.settle()
    world.provider.fail("eth_getBlockByNumber", Refusal("upstream is ill"), times=3)
    world.begin(world.sender.run())
    async with asyncio.timeout(5):
        assert (await sending).succeeded
    assert not world.provider.faults
    assert caplog.text.count("sender_waits") == 1
    await world.kill()
