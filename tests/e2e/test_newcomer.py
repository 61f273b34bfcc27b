"""Five commands on somebody's chain: init, faucet, register, stake, run, and a job is paid; then daily life.

And from texts to money: account, datanet, adapter publish, a job, earnings, withdraw."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.testing
from anyio.from_thread import BlockingPortal, start_blocking_portal

from openlora.node.cli.main import app
from openlora.node.config import NodeConfig, load
from openlora.node.demo_data import DEMO_ADAPTERS
from openlora.node.devnet import OLRA, Devnet, devnet
from tests.e2e.agents import agent, wait_until
from tests.e2e.conftest import Command
from tests.node.telemetry.broker import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

CHAIN_ID = 424_242


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def net(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Devnet]:
    """A network of strangers on a chain with an id of its own, none of whose nodes runs."""
    folder = tmp_path_factory.mktemp("net")
    with portal.wrap_async_context_manager(devnet(folder, model_dir, chain_id=CHAIN_ID)) as network:
        yield network


def test_from_init_to_a_paid_job(openlora: Command, net: Devnet, portal: BlockingPortal, model_dir, tmp_path):
    state = tmp_path / "mine"
    node, operator = ("--config", state / "node.toml"), ("--client", state / "operator.toml")

    def said(*arguments: object, code: int = 0) -> Any:
        done = typer.testing.CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == code, done.output + str(done.exception)
        return json.loads(done.stdout.splitlines()[-1])

    def faults(code: int) -> set[str]:
        return {finding["code"] for finding in said("doctor", *node, code=code)["findings"]}

    bootstrap = load(net.nodes[0].config, NodeConfig).network.bootstrap[0]
    flags = ("--rpc", net.chain.rpc_url, "--deployment", net.folder / "deployment.json", "--model", model_dir)
    flags += ("--bootstrap", bootstrap, "--listen", "/ip4/127.0.0.1/tcp/0", "--state", state)
    flags += ("--dashboard", f"127.0.0.1:{free_port()}")
    made = said("init", *flags)
    assert load(state / "node.toml", NodeConfig).chain.chain_id == CHAIN_ID, "the RPC says which chain it serves"
    refused = openlora("run", *node)
    assert refused.returncode == 2
    assert "serves no operator" in refused.stderr
    assert {"not_registered", "hot_key_unfunded"} <= faults(1)

    said("faucet", made["hot_key"], *operator)
    said("register", *node, *operator, "--stake", "4")
    said("stake", "4", *operator)
    assert faults(0) <= {"bootstrap_unreachable"}
    with agent(state):
        asked = openlora("job", "submit", "Why is the sky blue?", "--max-tokens", 8, "--client", net.client_config)
        assert asked.returncode == 0, asked.stderr
        wait_until(lambda: int(said("earnings", *operator)["withdrawable_wei"]), "the fee")
        assert "OpenLoRA" in httpx.get(made["dashboard"], timeout=10).text
        publish_and_be_paid(said, net, said("status", *node)["node"]["addresses"][0], model_dir, tmp_path)
        live_with(said, node, faults, tmp_path)


def live_with(said: Any, node: tuple[object, ...], faults: Any, folder: Path) -> None:
    """What an operator types while the node runs."""
    report = said("doctor", *node)
    assert report["healthy"]
    assert report["agent_runs"]
    shown = said("status", *node)
    assert shown["chain"]["chain_id"] == CHAIN_ID
    assert int(shown["stake"]["stake_wei"]) == 8 * OLRA
    assert said("drain", *node, "--wait") == {"draining": True, "drained": True}
    assert "claims_off" in faults(0)
    assert said("drain", *node, "--undo") == {"draining": False}
    assert said("reload", *node) == {"changed": [], "needs_restart": []}
    assert not said("backup", folder / "backup", *node)["encrypted"]
    assert said("upgrade", "--check", *node)["ready"]


def publish_and_be_paid(said: Any, net: Devnet, bootstrap: str, model: Path, folder: Path) -> None:
    """A provider's texts, and a developer's adapter of them: whoever asks for it pays both."""
    place = ("--rpc", net.chain.rpc_url, "--deployment", net.folder / "deployment.json", "--bootstrap", bootstrap)
    provider, developer = (said("account", *place, "--state", folder / name) for name in ("provider", "developer"))
    as_provider, as_developer = ("--client", provider["config"]), ("--client", developer["config"])
    said("faucet", provider["address"], *as_developer)

    (folder / "texts.jsonl").write_text('{"question": "Ahoy?", "answer": "Aye!"}\n')
    datanet = said("datanet", "create", folder / "texts.jsonl", "--name", "sea talk", *as_provider)
    assert said("datanet", "list", *as_developer)[-1] == datanet | {"owner": provider["address"]}
    adapter = folder / "adapter"
    shutil.copytree(DEMO_ADAPTERS[0].path, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1}))
    flags = ("--name", "parrot", "--model", model, "--datanet", datanet["datanet_id"], "--copies", 1)
    published = said("adapter", "publish", adapter, *flags, *as_developer)
    assert said("adapter", "publish", adapter, *flags, *as_developer) == published, "an interrupted one is taken up"

    said("job", "submit", "Ahoy?", "--adapter", "parrot", "--max-tokens", 4, "--client", net.client_config)
    for role, person in (("datanet", as_provider), ("adapter", as_developer)):
        wait_until(lambda person=person: said("earnings", *person)["earned_wei"], f"the {role}'s share")
        assert said("earnings", *person)["earned_wei"].keys() == {role}
        assert len(said("withdraw", "credits", *person)["transactions"]) == 1
