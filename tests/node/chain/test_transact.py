"""One-off transactions of people, on the fake chain: sent once, whatever a server answers."""

from pathlib import Path

import pytest

from openlora.node.chain.transact import transact
from openlora.node.errors import RpcDown, RpcError
from tests.node.chain.fake_chain import Refusal, effect
from tests.node.chain.test_rpc import too_many
from tests.node.chain.world import HOT_KEY, World


@pytest.mark.parametrize("answer", [Refusal("already known"), Refusal("internal error")])
async def test_what_was_sent_in_spite_of_the_answer_is_waited_for(tmp_path: Path, answer: Refusal) -> None:
    world = World(tmp_path, automine=True)
    world.open()
    world.provider.fail("eth_sendRawTransaction", answer, got_through=True)
    receipt = await transact(world.client, HOT_KEY, effect("submit"))
    assert receipt.succeeded
    assert world.chain.effects() == {b"submit": 1}
    await world.kill()


async def test_what_nobody_has_is_an_error_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    world.provider.fail("eth_sendRawTransaction", Refusal("transaction type not supported"))
    with pytest.raises(RpcError, match="type not supported"):
        await transact(world.client, HOT_KEY, effect("submit"))
    await world.kill()


async def test_an_answer_that_never_came_names_the_transaction(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    world.provider.fail("eth_sendRawTransaction", too_many("5"), got_through=True)
    with pytest.raises(
        RpcDown, match=r"JobQueue.submit: 0x[0-9a-f]{64} may be under way: look for it before repeating"
    ):
        await transact(world.client, HOT_KEY, effect("submit"))
    await world.kill()
