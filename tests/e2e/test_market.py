"""A submitter, an adapter's developer and a node on the command line: fees a use, answers published and demanded, jobs
taken back; every wei accounted for."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
from safetensors.numpy import save_file

from openlora.contracts import JobFlag, Role
from openlora.node.books import Books
from openlora.node.chain.history import market_events
from openlora.node.cli.main import app
from openlora.node.content import BlockContent
from openlora.node.demo_data import DEMO_ADAPTERS
from openlora.node.devnet import MODEL_NAME, OLRA, OUTPUT_TERMS, PARAMS, Devnet
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import AdapterError, OpenLoraError
from openlora.node.keys import create_key
from openlora.node.market import Market, committed, open_market
from openlora.node.wei import tokens
from tests.e2e.agents import agent, wait_until
from tests.node.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

WINDOW_S = 40  # long enough to type in


def openlora(*arguments: object) -> typer.testing.Result:
    """A command as people type it, in this process: starting one takes longer than what most of these do."""
    return typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def result(*arguments: object) -> Any:
    """The JSON of a command that succeeds."""
    done = openlora(*arguments, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.stdout.splitlines()[-1])


def refused(*arguments: object, words: str, code: int) -> None:
    done = openlora(*arguments)
    assert isinstance(done.exception, OpenLoraError), done.output
    assert (done.exception.exit_code, done.stdout) == (code, "")
    assert words in str(done.exception)


def as_client(net: Devnet, act: Callable[[Market], Any]) -> Any:
    async def run() -> Any:
        async with open_market(net.client_config) as market:
            return await act(market)

    return asyncio.run(run())


def lengthen_window(net: Devnet) -> None:
    async def act(client: Market) -> None:
        owner = Market(client.chain, net.deployment, net.people["protocol"], client.content)
        await owner.transact(owner.queue.set_params(replace(PARAMS, window_secs=WINDOW_S)))

    as_client(net, act)


def books(net: Devnet) -> Books:
    async def read(client: Market) -> Books:
        return Books.of(await market_events(client.chain, net.deployment))

    return as_client(net, read)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("job status 77", "no job 77 was ever submitted"),
        ("job demand 77", "no job 77 was ever submitted"),
        ("job cancel 77", "no job 77 was ever submitted"),
        ("job submit Hello --publish --max-tokens 9000", "too many to publish"),
        ("job submit Hello --publish --session", "--publish does not go with --session"),
        ("job submit Hello --node 0x12", "is no address"),
        (f"job submit Hello --node 0x{12:040}", "--node goes with --session or --private"),
        ("job submit Hello --price 9000000:9000000", "OLRA are needed"),
        ("adapter access nobody --take-down", "no adapter 'nobody' is registered"),
        ("adapter access pirate", "give --to, --allow, --deny or --take-down"),
        ("adapter access pirate --to public --use-fee 1", "pay-per-use with a fee"),
        ("adapter access pirate --to pay-per-use", "pay-per-use with a fee"),
        ("adapter access pirate --allow 0x12", "is no address"),
        ("adapter publish nowhere --name x --model nowhere --access pay-per-use", "pay-per-use with a fee"),
    ],
)
def test_what_cannot_be_meant_costs_nothing(net: Devnet, command: str, words: str):
    before = as_client(net, purse)
    refused(*command.split(), "--client", net.client_config, words=words, code=2)
    assert as_client(net, purse) == before


def test_a_base_does_not_take_anothers_name(net: Devnet, tmp_path: Path):
    """Jobs ask by name: of two, they could ask for neither."""
    model = write_tiny_model(tmp_path / "tiny")
    save_file({"weight": np.zeros(1, np.float32)}, model / "model.safetensors")
    command = ("model", "register", model, "--client", net.client_config)
    refused(*command, "--name", MODEL_NAME, words=f"{MODEL_NAME} is the name of 0x{net.base_id.hex()}", code=2)
    assert openlora(*command, "--name", "tiny").exception is None


@pytest.mark.parametrize(
    ("base", "datanets", "words"),
    [(None, [1, 2], r"with the datanets: 1;"), (bytes(32), [1], r"registered for the base 0x[0-9a-f]{64}")],
)
def test_what_is_registered_already_keeps_its_base_and_its_datanets(
    net: Devnet, model_dir: Path, tmp_path: Path, base: bytes | None, datanets: list[int], words: str
):
    """Whoever shares in its fees was settled the first time: nobody is to believe that it was changed."""
    demo = DEMO_ADAPTERS[0]
    layout = DecoderConfig.from_path(model_dir).modules()

    async def again(client: Market, base_id: bytes, named: list[int]) -> bytes:
        content = BlockContent(tmp_path / "blocks")
        owner = Market(client.chain, net.deployment, net.people["developer 1"], content)
        return await owner.publish_adapter(demo.path, layout, base_id, named, "parrot")

    with pytest.raises(AdapterError, match=words):
        as_client(net, lambda client: again(client, base or net.base_id, datanets))
    assert as_client(net, lambda client: again(client, net.base_id, [])) == net.adapters[demo.name]


async def purse(client: Market) -> tuple[int, int]:
    """Coin and Vault balance."""
    return await client.chain.balance(client.key.address), await client.desk.balance()


def test_a_job_is_looked_at_and_taken_back(net: Devnet):
    """With tokens in the purse alone, of which submitting deposits what it takes."""
    mine = ("--client", net.nodes[2].operator_config)
    submitted = result("job", "submit", "Hello", "--deadline", 900, *mine)
    job_id = submitted["job_id"]
    assert result("earnings", *mine)["balance_wei"] == "0"
    seen = result("job", "status", job_id, *mine)
    assert (seen["state"], seen["node"], seen["fee_wei"]) == ("open", None, None)
    assert seen["escrow_wei"] == submitted["escrow_wei"]
    assert result("job", "status", *mine) == [seen]
    assert result("job", "status", "--client", net.client_config) == []
    refused("job", "cancel", job_id, "--client", net.client_config, words="the client's account", code=3)
    draft = result("job", "cancel", job_id, "--unsigned", "--from", seen["client"], "--client", net.client_config)
    assert draft[0]["does"].startswith(f"cancel job {job_id}")
    result("job", "cancel", job_id, *mine)
    assert result("earnings", *mine)["balance_wei"] == submitted["escrow_wei"], "which the next job takes"
    assert result("job", "status", job_id, *mine)["state"] == "cancelled"
    refused("job", "cancel", job_id, *mine, words="is cancelled", code=3)
    _, row = openlora("job", "status", job_id, *mine).stdout.splitlines()
    assert row.split() == [str(job_id), "cancelled", tokens(int(submitted["escrow_wei"]))]


def test_anybody_ends_a_job_whose_deadline_has_passed(net: Devnet):
    job_id = result("job", "submit", "Hello", "--deadline", 5, "--client", net.nodes[2].operator_config)["job_id"]
    asyncio.run(net.chain.rpc("evm_increaseTime", 6))
    asyncio.run(net.chain.rpc("evm_mine"))
    stranger = ("--client", net.client_config)
    assert result("job", "status", job_id, *stranger)["state"] == "overdue"
    (sent,) = result("job", "cancel", job_id, *stranger)["transactions"]
    assert sent["does"].startswith(f"expire job {job_id}")
    assert result("job", "status", job_id, *stranger)["state"] == "expired"


def test_a_developer_is_paid_by_the_use_and_a_node_for_a_needless_demand(net: Devnet, tmp_path: Path):
    """One answer published as part of its job, one because its client demands it."""
    developer, _ = create_key(tmp_path, "developer", bytes(net.people["developer 1"].key))
    owner = ("--operator-keystore", developer.keystore, "--password-file", developer.password_file)
    client = ("--client", net.client_config)
    refused("adapter", "access", "pirate", "--take-down", *client, words="does not own", code=3)
    result("adapter", "access", "pirate", "--to", "allow-list", *client, *owner)
    order = ("job", "submit", "Why is the sky blue?", "--adapter", "pirate", "--max-tokens", 8, *client)
    refused(*order, words="ask its owner", code=3)
    address = net.people["client"].address
    result("adapter", "access", "pirate", "--allow", address, *client, *owner)
    result("adapter", "access", "pirate", "--to", "pay-per-use", "--use-fee", "0.03", *client, *owner)
    refused(*order, "--session", words="no session", code=2)
    lengthen_window(net)
    with agent(net.nodes[0].folder):
        published = result(*order, "--publish")
        assert published["use_fee_wei"] == str(3 * OLRA // 100)
        wait_until(lambda: result("job", "status", published["job_id"], *client)["state"] == "committed", "publishing")
        asked = result("job", "submit", "Why is the sky blue?", "--max-tokens", 8, *client)["job_id"]
        wait_until(lambda: result("job", "status", asked, *client)["state"] == "committed", "the answer")
        demanded = result("job", "demand", asked, *client)
        assert demanded["transactions"][-1]["does"].startswith(f"demand the output of job {asked}")
        wait_until(lambda: result("job", "status", asked, *client)["state"] == "committed", "the node's publishing")
        refused("job", "demand", asked, *client, words="is asked only once", code=3)
        assert result("job", "result", asked, *client)["usage"]["completion_tokens"] <= 8
        asyncio.run(net.chain.rpc("evm_increaseTime", WINDOW_S))
        wait_until(lambda: result("job", "status", asked, *client)["state"] == "finalized", "the payment")
    spec = as_client(net, lambda market: market.spec(published["job_id"]))
    assert spec.flags & JobFlag.PUBLISH
    earned = books(net)
    assert earned.balanced
    assert earned.open_wei == 0
    assert earned.earned[Role.USE, net.people["developer 1"].address] == 3 * OLRA // 100
    fees = [int(result("job", "status", job, *client)["fee_wei"]) for job in (published["job_id"], asked)]
    assert earned.paid_wei == sum(fees) + 3 * OLRA // 100
    node = result("earnings", "--client", net.nodes[0].operator_config)
    bond_wei = OUTPUT_TERMS.bond + OUTPUT_TERMS.bond_per_token * as_client(net, lambda one: out_tokens(one, asked))
    assert int(node["withdrawable_wei"]) == int(node["earned_wei"]["node"]) + bond_wei


async def out_tokens(market: Market, job_id: int) -> int:
    receipt, _ = await committed(market.desk, job_id)
    return receipt.out_tokens
