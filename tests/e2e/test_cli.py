"""Every verb that needs a network, typed as people type it."""

import asyncio
import json

import pytest
import typer.testing

from openlora.contracts import Role
from openlora.node.base_model import base_model_id
from openlora.node.books import Books
from openlora.node.chain.history import events
from openlora.node.cli.main import app
from openlora.node.devnet import Devnet
from openlora.node.market import open_market
from tests.e2e.agents import agent, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]


def test_help_is_the_map():
    shown = typer.testing.CliRunner().invoke(app, ["--help"]).output
    for verb in (
        "init",
        "doctor",
        "drain",
        "reload",
        "backup",
        "restore",
        "upgrade",
        "logs",
        "bench",
        "run",
        "network",
        "account",
        "datanet",
        "faucet",
        "devnet",
        "demo",
        "status",
        "job",
        "adapter",
        "model",
        "earnings",
        "withdraw",
        "serve",
    ):
        assert f" {verb} " in shown, verb


def test_a_job_from_the_command_line_pays_its_operator(openlora, net: Devnet, model_dir):
    client, operator = ("--client", net.client_config), ("--client", net.nodes[0].operator_config)

    def result(*arguments: object) -> dict:
        done = openlora(*arguments, "--json", timeout_s=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    listed = {entry["name"]: entry for entry in result("adapter", "list", *client)}
    assert listed.keys() == net.adapters.keys()
    assert result("model", "verify", model_dir)["base_id"] == "0x" + base_model_id(model_dir).hex()

    with agent(net.nodes[0].folder):
        ensemble = ("--adapter", "pirate:0.7", "--adapter", f"{listed['haiku']['cid']}:0.3")
        done = openlora("job", "submit", "Why is the sky blue?", *ensemble, "--max-tokens", 12, "--watch", *client)
        assert done.returncode == 0, done.stderr
        first, *answer, last = done.stdout.splitlines()
        assert first.startswith("job 1: ")
        assert last == "job 1 is committed"
        watched = result("job", "watch", 1, *client)
        output = result("job", "result", 1, *client)
        assert output["text"] == "\n".join(answer) == watched["text"]
        assert output["usage"]["completion_tokens"] <= 12

        state = result("status", "--config", net.nodes[0].config)
        assert state["chain"]["chain_id"] == net.chain.chain_id
        assert state["adapters"]["slots"]["total_adapters"] == 2
        assert state["network"]["seen_nodes"] == 1
        (seen,) = result("network", *client)
        assert seen["operator"] == state["node"]["operator"].lower()
        assert seen["adapters"]["slots"]["total"] == 2
        assert result("network", "--config", net.nodes[0].config)[0]["peer_id"] == seen["peer_id"]
        human = openlora("status", "--config", net.nodes[0].config)
        assert state["node"]["operator"] in human.stdout

        second = openlora("run", "--config", net.nodes[0].config)
        assert (second.returncode, "another agent (process" in second.stderr) == (2, True), second.stderr
        wait_until(lambda: int(result("earnings", *operator)["withdrawable_wei"]), "the fee")
    earned = result("earnings", *operator)
    assert earned["earned_wei"] == {"node": earned["withdrawable_wei"]}
    (sent,) = result("withdraw", "credits", *operator)["transactions"]
    assert sent["does"].startswith("send ")
    assert result("earnings", *operator)["withdrawable_wei"] == "0"

    books = asyncio.run(read_books(net))
    roles = set(Role) - {Role.USE}  # no adapter of it asks for a fee of its own
    assert {role for role, _ in books.earned} == roles, "everyone whose work was used is credited"
    assert books.paid_wei + books.refunded_wei == books.escrow_wei


async def read_books(net: Devnet) -> Books:
    async with open_market(net.client_config) as client:
        return Books.of(await events(client.chain, net.deployment.job_queue, net.deployment.block))


def test_what_has_no_answer_yet_says_so(openlora, net: Devnet):
    done = openlora("job", "result", 999, "--client", net.client_config)
    assert done.returncode == 2
    assert "no job 999 was ever submitted" in done.stderr
