"""Money on the command line: stake, unstake, withdraw, rotate the hot key; signed here or elsewhere; sessions."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openlora.node.chain.transact import transact
from openlora.node.config import KeyConfig
from openlora.node.devnet import CLOSE_DELAY_S, OLRA, STAKE_WEI, UNSTAKE_DELAY_S, Devnet
from openlora.node.keys import load_key
from openlora.node.market import open_market
from openlora.node.private.sealing import public_key
from tests.e2e.agents import PATIENCE_S, agent, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

Result = Callable[..., Any]


@pytest.fixture
def result(openlora) -> Result:
    """The JSON of a command that succeeds."""

    def run(*arguments: object) -> Any:
        done = openlora(*arguments, "--json", timeout_s=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def on_chain(net: Devnet, read: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with open_market(net.nodes[1].operator_config) as person:
            return await read(person)

    return asyncio.run(run())


def stake_of(net: Devnet) -> Any:
    return on_chain(net, lambda person: person.chain.call(person.nodes.node(person.key.address)))


def test_stake_goes_in_and_comes_out(openlora, result: Result, net: Devnet, tmp_path: Path):
    operator = ("--client", net.nodes[1].operator_config)
    keystore = ("--operator-keystore", net.nodes[1].folder / "operator.json")
    password = ("--password-file", net.nodes[1].folder / "operator.password")
    staked = result("stake", "5", "--client", net.client_config, *keystore, *password)
    assert [step["does"] for step in staked["transactions"]][-1] == "put 5 OLRA at stake"
    assert stake_of(net).stake == STAKE_WEI + 5 * OLRA

    result("unstake", "5", *operator)
    early = openlora("withdraw", "stake", *operator)
    assert (early.returncode, "withdraw it then" in early.stderr) == (3, True), early.stderr
    asyncio.run(net.chain.rpc("evm_increaseTime", UNSTAKE_DELAY_S))
    result("withdraw", "stake", *operator)
    assert stake_of(net).stake == STAKE_WEI
    assert result("earnings", *operator)["balance_wei"] == str(5 * OLRA)
    result("withdraw", "balance", "--amount", "2", *operator)
    assert result("earnings", *operator)["balance_wei"] == str(3 * OLRA)
    assert result("withdraw", "credits", *operator)["transactions"] == []


def test_what_is_signed_elsewhere_does_the_same(openlora, result: Result, net: Devnet):
    """No key is read: the JSON is all that a signer elsewhere gets."""
    before = stake_of(net).stake
    address = stake_key(net).address
    flags = ("--client", net.client_config, "--unsigned", "--from", address)
    drafts = result("stake", "7", *flags)
    assert {"from", "to", "data", "value", "chainId", "gas", "does"} == drafts[0].keys()
    assert [draft["does"].split()[0] for draft in drafts][-1] == "put"
    assert stake_of(net).stake == before, "nothing was sent"
    on_chain(net, lambda person: send(person, drafts))
    assert stake_of(net).stake == before + 7 * OLRA
    refused = openlora("stake", "7", "--client", net.client_config, "--from", address)
    assert refused.returncode == 2
    assert "--unsigned" in refused.stderr


def stake_key(net: Devnet) -> Any:
    folder = net.nodes[1].folder
    return load_key(KeyConfig(keystore=folder / "operator.json", password_file=folder / "operator.password"))


async def send(person: Any, drafts: list[dict[str, Any]]) -> None:
    from openlora.contracts import Call

    for draft in drafts:
        data = bytes.fromhex(draft["data"][2:])
        await transact(person.chain, person.key, Call(draft["to"], data, draft["does"], lambda _: None))


def test_a_password_is_asked_for_on_a_terminal_only(openlora, net: Devnet):
    done = openlora(
        "stake", "1", "--client", net.client_config, "--operator-keystore", net.nodes[1].folder / "operator.json"
    )
    assert done.returncode == 2
    assert "--password-file" in done.stderr


def session_of(net: Devnet, session: str) -> Any:
    return on_chain(net, lambda person: person.chain.call(person.desk.sessions.session(bytes.fromhex(session[2:]))))


def test_a_session_outlives_the_hot_key_that_answered_in_it(openlora, result: Result, net: Devnet):
    """Orders cost no transaction. The node stops when its key's turn is over, goes on with the next one where it was,
    and settles what it was paid, once."""
    client, operator, node = ("--client", net.client_config), net.people["operator 1"].address, net.nodes[0]
    with agent(node.folder) as running:
        opened = result("session", "open", "--node", operator, "--deposit", "3", *client)
        order = ("job", "submit", "Why is the sky blue?", "--max-tokens", 8, "--session", *client)
        first = result(*order, "--adapter", "pirate")
        assert first["node"] == operator
        assert first["usage"]["completion_tokens"] <= 8
        second = openlora(*order, "--node", operator)
        assert second.returncode == 0, second.stderr
        assert "of the deposit are spent" in second.stdout
        new = KeyConfig(keystore=node.folder / "hot-2.json", password_file=node.folder / "hot-2.password")
        address = result("rotate-hot-key", "--new-hot-key", new.keystore, "--client", node.operator_config)["hot_key"]
        asyncio.run(net.chain.rpc("anvil_setBalance", address, hex(10**18)))
        registered = on_chain(net, lambda person: person.chain.call(person.nodes.node(operator)))
        assert registered.encryption_key == public_key(bytes(load_key(new).key))
        assert running.wait(PATIENCE_S) == 2
    assert f"hot key is {address} now" in (node.folder / "node.log").read_text()
    # It has stopped with vouchers in its journal, and nothing on chain.
    (shown,) = result("session", "status", *client)
    assert (shown["session"], shown["state"], shown["settled_wei"]) == (opened["session"], "open", "0")
    result("session", "topup", opened["session"], "1", *client)
    config = node.config.read_text()
    node.config.write_text(config.replace('"hot.json"', '"hot-2.json"').replace('"hot.password"', '"hot-2.password"'))
    with agent(node.folder):
        third = result(*order)
        assert int(third["spent_wei"]) > int(first["fee_wei"])
        result("session", "close", opened["session"], *client)
        wait_until(lambda: session_of(net, opened["session"]).settled, "the node's settling")
    asyncio.run(net.chain.rpc("evm_increaseTime", CLOSE_DELAY_S))
    result("session", "close", opened["session"], *client)
    closed = session_of(net, opened["session"])
    assert int(third["spent_wei"]) == closed.settled == closed.deposit, "the rest has gone back"
    assert result("earnings", "--client", node.operator_config)["earned_wei"]["node"] != "0"
    again = openlora("session", "close", opened["session"], *client)
    assert (again.returncode, "closed already" in again.stderr) == (2, True)
