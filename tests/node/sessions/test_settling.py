"""When vouchers go to the chain, and that each does once."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openlora.contracts import SessionClosing, SessionState
from openlora.node.config import SessionsConfig
from openlora.node.errors import Reverted
from openlora.node.tasks import running
from tests.node.facts import open_journal
from tests.node.sessions.scene import SESSION, Scene, new_scene, opened, paid_order

FEE = 38
SETTLE = f"settle:{SESSION.hex()}"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with new_scene(tmp_path) as made:
        made.now_s = time.time()
        yield made


async def sweep(scene: Scene) -> None:
    """One look at all unsettled vouchers."""
    for payment in scene.ledger.unsettled():
        await scene.settler._consider(payment)


async def order(scene: Scene, count: int = 1) -> None:
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    for _ in range(count):
        await paid_order(conversation, scene.now_s)


async def test_a_small_payment_waits(scene: Scene):
    await order(scene)
    await sweep(scene)
    assert scene.transactions.sent == []


async def test_many_receipts_are_settled_in_one_transaction_when_the_client_leaves(scene: Scene):
    await order(scene, 3)
    scene.change(state=SessionState.CLOSING, close_at=int(scene.now_s) + 60)
    await sweep(scene)
    assert scene.transactions.sent == [f"{SETTLE}:{3 * FEE}"]
    await sweep(scene)
    assert len(scene.transactions.sent) == 1


@pytest.mark.parametrize("later_s", [86_410, 30 * 86_400 - 60])
async def test_time_settles(scene: Scene, later_s: int):
    """A day after the first payment, whatever it is worth; and before a voucher is too old."""
    await order(scene)
    scene.settler.clock = lambda: scene.now_s + later_s
    await sweep(scene)
    assert scene.transactions.sent == [f"{SETTLE}:{FEE}"]


async def test_the_threshold_settles_again_and_again(tmp_path: Path):
    async with new_scene(tmp_path, SessionsConfig(settle_at_wei=2 * FEE)) as scene:
        scene.now_s = time.time()
        for _ in range(4):
            await order(scene)
            await sweep(scene)
        assert scene.transactions.sent == [f"{SETTLE}:{2 * FEE}", f"{SETTLE}:{4 * FEE}"]


async def test_what_somebody_else_settled_is_not_sent(scene: Scene):
    await order(scene)
    scene.change(settled=FEE, state=SessionState.CLOSING)
    await sweep(scene)
    assert (scene.transactions.sent, scene.ledger.unsettled()) == ([], [])


async def test_a_refusal_for_good_ends_it_and_one_for_now_does_not(scene: Scene):
    await order(scene)
    scene.change(state=SessionState.CLOSING)
    scene.transactions.reverts = {"settle": "LinesMismatch"}
    with pytest.raises(Reverted):
        await sweep(scene)
    assert len(scene.ledger.unsettled()) == 1
    scene.transactions.reverts = {"settle": "VoucherNotNewer"}
    await sweep(scene)
    assert scene.ledger.unsettled() == []


async def test_a_killed_node_settles_after_its_restart(tmp_path: Path):
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            scene.now_s = time.time()
            await order(scene, 2)
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            scene.change(state=SessionState.CLOSING)
            async with running(scene.settler.run(), "settler"), asyncio.timeout(5):
                while not scene.transactions.sent:  # noqa: ASYNC110 - it announces nothing
                    await asyncio.sleep(0.005)
            assert scene.transactions.sent == [f"{SETTLE}:{2 * FEE}"]


async def test_a_wish_to_close_is_heard_at_once(scene: Scene):
    await order(scene)
    scene.settler.sweep_s = 60
    async with running(scene.settler.run(), "settler"), asyncio.timeout(5):
        await asyncio.sleep(0.02)
        assert scene.transactions.sent == []
        scene.change(state=SessionState.CLOSING)
        scene.settler.apply(SessionClosing(SESSION, 0))
        while not scene.transactions.sent:  # noqa: ASYNC110 - it announces nothing
            await asyncio.sleep(0.005)
