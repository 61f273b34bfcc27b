"""Bad input: one plain sentence that says what is wrong and what to do, exit code 2, no traceback, nothing lost."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from openlora.node.devnet import Devnet

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("refusals")]

UNKNOWN_CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"


@pytest.fixture
def node_toml(net: Devnet, tmp_path: Path) -> Path:
    """A node's folder of the test's own, on the module's network."""
    for folder in (net.nodes[0].folder, net.client_config.parent):
        for path in folder.iterdir():
            if path.suffix in (".toml", ".json", ".password"):
                shutil.copy(path, tmp_path)
    shutil.copy(net.folder / "deployment.json", tmp_path)
    for path in tmp_path.glob("*.toml"):
        edit(path, r'^deployment = "[^"]*"', 'deployment = "deployment.json"')
    return tmp_path / "node.toml"


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} occurs {count} times"
    path.write_text(text)


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("openlora: ")
    assert all(word in sentence for word in words), sentence


def test_unknown_config_keys_are_all_named(openlora, node_toml):
    edit(node_toml, r"^poll_s", "pol_s")
    edit(node_toml, r"^max_running", "max_runing")
    refused(openlora("run", "--config", node_toml), "unknown key chain.pol_s", "unknown key engine.max_runing")


def test_a_missing_config(openlora, tmp_path):
    refused(openlora("run", "--config", tmp_path / "node.toml"), "does not exist", "openlora init")


def test_a_wrong_chain_id(openlora, node_toml):
    edit(node_toml, r"^chain_id = 31337", "chain_id = 1")
    edit(node_toml.parent / "deployment.json", r'"chain_id": 31337', '"chain_id": 1')
    refused(openlora("run", "--config", node_toml), "chain 1;", "rpc_urls")


def test_a_deployment_of_another_chain(openlora, node_toml):
    edit(node_toml.parent / "deployment.json", r'"chain_id": 31337', '"chain_id": 5')
    refused(openlora("run", "--config", node_toml), "chain 5", "31337")


def test_a_missing_model(openlora, node_toml):
    edit(node_toml, r'^path = "[^"]*"', 'path = "/nowhere/model"')
    refused(openlora("run", "--config", node_toml), "/nowhere/model")


def test_an_rpc_that_is_down(openlora, node_toml):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    edit(node_toml, r"http://127\.0\.0\.1:\d+", f"http://127.0.0.1:{port}")
    refused(openlora("run", "--config", node_toml), str(port), code=75)


def test_a_wrong_passphrase_journals_nothing(openlora, node_toml):
    (node_toml.parent / "hot.password").write_text("guess\n")
    refused(openlora("run", "--config", node_toml), "password", "hot.json")
    assert not (node_toml.parent / "journal.sqlite").exists()


def test_a_hot_key_that_serves_nobody(openlora, node_toml):
    edit(node_toml, r'^keystore = "hot.json"', 'keystore = "client.json"')
    edit(node_toml, r'^password_file = "hot.password"', 'password_file = "client.password"')
    refused(openlora("run", "--config", node_toml), "serves no operator")


def test_another_agents_journal(openlora, node_toml):
    refused(openlora("run", "--config", _with_foreign_journal(node_toml)), "belongs to", "state folder")


def _with_foreign_journal(node_toml: Path) -> Path:
    from openlora.node.journal import Identity, Journal

    Journal(node_toml.parent, Identity(1, {"vault": "0x" + "11" * 20}, "0x" + "22" * 20)).close()
    return node_toml


def test_a_busy_port(openlora, tmp_path, model_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            openlora("devnet", "--state", tmp_path / "net", "--model", model_dir, "--port", port), str(port), "--port"
        )


def test_a_dashboard_port_that_another_node_has(openlora, node_toml):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        edit(node_toml, r'^listen = "[^"]*"', f'listen = "127.0.0.1:{port}"')
        refused(openlora("run", "--config", node_toml), f"port {port}", "telemetry.listen")


def test_an_adapter_for_another_base(openlora, node_toml, tmp_path, model_dir):
    other = tmp_path / "other"
    other.mkdir()
    text = (model_dir / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"hidden_size": 576', '"hidden_size": 1152'))
    adapter = Path(__file__).resolve().parents[2] / "node/openlora/node/demo_data/adapters/pirate"
    done = openlora(
        "adapter", "publish", adapter, "--name", "x", "--model", other, "--client", node_toml.with_name("client.toml")
    )
    refused(done)


@pytest.mark.parametrize("name", [UNKNOWN_CID, "nobody", "pirate:heavy", "pirate:0"])
def test_an_adapter_that_nobody_has(openlora, node_toml, name):
    done = openlora("job", "submit", "Hello", "--adapter", name, "--client", node_toml.with_name("client.toml"))
    refused(done, name.split(":")[0])


def test_there_is_no_stake_to_withdraw(openlora, node_toml):
    done = openlora("withdraw", "stake", "--client", node_toml.with_name("client.toml"))
    assert (done.returncode, done.stdout) == (0, "there is nothing to do\n"), done.stderr


def test_more_than_the_balance(openlora, node_toml):
    done = openlora(
        "job", "submit", "Hello", "--price", "900000:900000", "--client", node_toml.with_name("client.toml")
    )
    refused(done, "OLRA are needed", "in the Vault", "offer less")


def test_a_client_that_knows_no_peer(openlora, node_toml):
    client = node_toml.with_name("client.toml")
    edit(client, r"^bootstrap = .*", "bootstrap = []")
    refused(openlora("job", "watch", "1", "--client", client), "bootstrap", "openlora status --json")
    refused(openlora("network"), "--config", "--client")


def test_a_network_that_cannot_be_joined(openlora, node_toml):
    client = node_toml.with_name("client.toml")
    edit(client, r"^bootstrap = .*", 'bootstrap = ["/ip4/127.0.0.1/tcp/4001"]')
    refused(openlora("network", "--client", client), "/ip4/127.0.0.1/tcp/4001", "/p2p/")


def test_no_agent(openlora, node_toml):
    refused(openlora("status", "--config", node_toml), "agent.sock", "openlora run")


def test_init_refuses_to_overwrite_and_names_what_is_missing(openlora, net, tmp_path, model_dir):
    flags = ("--rpc", net.chain.rpc_url, "--chain-id", net.chain.chain_id, "--state", tmp_path / "node")
    deployment = ("--deployment", net.folder / "deployment.json")
    refused(openlora("init", *flags, "--deployment", "/nowhere.json", "--model", model_dir), "/nowhere.json")
    assert openlora("init", *flags, *deployment, "--model", model_dir).returncode == 0
    key = (tmp_path / "node/hot.json").read_text()
    refused(openlora("init", *flags, *deployment, "--model", model_dir), "exists already")
    assert (tmp_path / "node/hot.json").read_text() == key
