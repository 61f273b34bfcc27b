"""`openlora init`: questions on a terminal, flags elsewhere, and nothing overwritten."""

import json
import os
import pty
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer.testing

from openlora.node.cli.init import chosen_chain
from openlora.node.cli.main import app
from openlora.node.config import ClientConfig, EngineConfig, NetworkConfig, NodeConfig, load
from openlora.node.errors import ConfigError, ModelError, WrongChain
from openlora.node.hardware import link_mbit
from openlora.node.keys import load_key
from openlora.node.new_node import Plan, fitting_engine, found_model, served_chain, write
from tests.node.engine.tiny import write_model
from tests.node.telemetry.broker import free_port

GIB = 1 << 30
ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
REGISTRIES = ("vault", "node_registry", "adapter_registry", "job_queue", "sessions", "disputes", "governance")
DEPLOYMENT = {"chain_id": 7, "block": 0, "token": ADDRESS} | dict.fromkeys(REGISTRIES, ADDRESS)


def no_question(question: str, default: str) -> str:
    raise AssertionError(f"{question} was asked")


def test_the_rpc_says_which_chain_it_serves():
    assert chosen_chain("url", 7, None, no_question) == 7
    assert chosen_chain("url", None, 8, no_question) == 8
    assert chosen_chain("url", None, None, lambda question, default: "9") == 9
    with pytest.raises(WrongChain, match="serves chain 7, not 8"):
        chosen_chain("url", 7, 8, no_question)
    with pytest.raises(ConfigError, match="whole number"):
        chosen_chain("url", None, None, lambda question, default: "main")


def test_the_cache_fits_what_memory_is_left(tmp_path: Path):
    model, engine = write_model(tmp_path / "model"), EngineConfig()  # 128 bytes a token
    assert fitting_engine(engine, model, 0) is engine
    assert fitting_engine(engine, model, 8 * GIB) is engine
    small = fitting_engine(engine, model, GIB + (1 << 21))
    assert small.kv_tokens == 15 * 1024  # 2 MiB less 73 KiB of weights
    with pytest.raises(ModelError, match="does not fit"):
        fitting_engine(engine, model, GIB)


def test_a_model_is_a_path_or_a_known_name(tmp_path: Path):
    model = write_model(tmp_path / "model")
    assert found_model(str(model), tmp_path, print) == model
    with pytest.raises(ConfigError, match="smollm2-135m-instruct"):
        found_model("nobody", tmp_path, print)


def test_the_link_is_that_of_the_default_route(tmp_path: Path):
    routes = tmp_path / "route"
    routes.write_text("Iface Destination\neth1 000200C0\neth0 00000000\n")
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0/speed").write_text("10000\n")
    assert link_mbit(routes=routes, interfaces=tmp_path) == 10_000
    (tmp_path / "eth0/speed").write_text("-1\n")
    assert link_mbit(routes=routes, interfaces=tmp_path) == 0
    assert link_mbit(routes=tmp_path / "nowhere") == 0


@pytest.mark.parametrize("address", ["xx", "", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW"])
@pytest.mark.parametrize("command", ["init", "account"])
def test_an_address_to_join_by_is_checked_before_anything_is_written(tmp_path: Path, command: str, address: str):
    flags = ["--rpc", "http://127.0.0.1:1", "--deployment", "none.json", "--state", str(tmp_path / "new")]
    done = typer.testing.CliRunner().invoke(app, [command, *flags, "--bootstrap", address])
    assert isinstance(done.exception, ConfigError)
    assert f"--bootstrap: {address!r} is no address of a peer" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_an_account_is_a_configuration_and_a_key_or_nothing(tmp_path: Path):
    deployment, folder = tmp_path / "deployment.json", tmp_path / "me"
    deployment.write_text(json.dumps(DEPLOYMENT | {"outputs": ADDRESS}))
    flags = ["--rpc", f"http://127.0.0.1:{free_port()}", "--chain-id", "7", "--deployment", str(deployment)]
    command = [sys.executable, "-m", "openlora.node", "account", *flags, "--json", "--state"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    config = load(Path(json.loads(done.stdout)["config"]), ClientConfig)
    assert load_key(config.key).address == json.loads(done.stdout)["address"]
    for state, fault in ((folder, "exists already"), (deployment, "File exists; name another path")):
        refused = subprocess.run([*command, str(state)], capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert fault in refused.stderr


def test_what_is_no_url_is_not_asked():
    with pytest.raises(ConfigError, match="is no RPC's URL"):
        served_chain("127.0.0.1:8545")


def test_flags_alone_make_a_node_where_no_rpc_answers(tmp_path: Path):
    deployment = tmp_path / "deployment.json"
    deployment.write_text(json.dumps(DEPLOYMENT))
    flags = ["--rpc", f"http://127.0.0.1:{free_port()}", "--chain-id", "7", "--deployment", str(deployment)]
    flags += ["--model", str(write_model(tmp_path / "model")), "--state", str(tmp_path / "node"), "--price", "1:2"]
    flags += ["--dashboard", "[::1]:9999"]
    done = typer.testing.CliRunner().invoke(app, ["init", *flags, "--json"])
    made = json.loads(done.output)
    config = load(Path(made["config"]), NodeConfig)
    assert (config.chain.chain_id, config.market.min_out_price_wei_per_k) == (7, 2 * 10**18)
    assert (config.telemetry.listen, made["dashboard"]) == ("[::1]:9999", "http://[::1]:9999")
    assert made["funding"] is None
    again = typer.testing.CliRunner().invoke(app, ["init", *flags])
    assert isinstance(again.exception, ConfigError)
    assert "exists already" in str(again.exception)


def test_what_is_missing_is_named_where_nobody_can_be_asked(tmp_path: Path):
    done = typer.testing.CliRunner().invoke(app, ["init", "--state", str(tmp_path / "node")])
    assert "--rpc" in str(done.exception)


def test_a_full_disk_leaves_no_half_of_a_node(tmp_path: Path):
    state, (_, most) = tmp_path / "node", resource.getrlimit(resource.RLIMIT_FSIZE)
    plan = Plan(
        state=state,
        rpc_url="http://127.0.0.1:1",
        chain_id=7,
        deployment=tmp_path / "deployment.json",
        model=tmp_path / "model",
        in_price_wei_per_k=1,
        out_price_wei_per_k=1,
        engine=EngineConfig(),
        network=NetworkConfig(),
        dashboard="",
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, most))  # enough for keys, and not for node.toml
    try:
        with pytest.raises(OSError, match="too large"):
            write(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert list(state.iterdir()) == []
    assert write(plan).config.exists()


def test_a_dashboard_that_others_could_reach_is_refused_before_anything_is_made(tmp_path: Path):
    flags = ["--state", str(tmp_path / "node"), "--dashboard", "0.0.0.0:9464"]
    done = typer.testing.CliRunner().invoke(app, ["init", *flags])
    assert "telemetry.key_file" in str(done.exception)
    assert not (tmp_path / "node").exists()


@pytest.mark.slow
def test_on_a_terminal_it_asks(tmp_path: Path):
    (tmp_path / "deployment.json").write_text(json.dumps(DEPLOYMENT))
    write_model(tmp_path / "model")
    answers = (f"http://127.0.0.1:{free_port()}", "7", "deployment.json", "model", "0.5:0.25")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "openlora.node", "init", "--state", "node"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
        shown = b""
        with suppress(OSError):  # what a terminal says at its end
            while said := os.read(ours, 4096):
                shown += said
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    config = load(tmp_path / "node/node.toml", NodeConfig)
    assert (config.chain.chain_id, config.market.min_in_price_wei_per_k) == (7, 5 * 10**17)
    assert config.telemetry.listen == "127.0.0.1:9464"
    assert b"openlora doctor --config node/node.toml" in shown
    assert b"openlora run --config node/node.toml    # its page: http://127.0.0.1:9464" in shown
