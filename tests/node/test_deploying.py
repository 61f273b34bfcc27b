"""The terms of a market: a strict file, and a command that puts it on a chain."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from openlora.contracts import Deployment
from openlora.node.anvil import anvil
from openlora.node.deploying import load_settings
from openlora.node.errors import ConfigError
from openlora.node.keys import create_key

EXAMPLE = Path(__file__).resolve().parents[2] / "configs/market.example.toml"


def test_the_example_names_every_setting():
    settings = load_settings(EXAMPLE)
    assert settings.unstake_delay_s > settings.params.window_secs


def test_all_faults_are_named(tmp_path):
    path = tmp_path / "market.toml"
    path.write_text(
        EXAMPLE.read_text().replace("max_lease_secs", "max_leese").replace('owner = "0x0', 'colour = 1\nowner = "0x')
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    for fault in ("unknown key params.max_leese", "unknown key colour", "owner: no checksummed address"):
        assert fault in str(caught.value)
    path.write_text(EXAMPLE.read_text().replace("bond = 1", 'bond = "1"  # '))
    with pytest.raises(ConfigError, match="bond"):
        load_settings(path)
    with pytest.raises(ConfigError, match=r"market\.example\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_market_is_deployed_by_command(tmp_path):
    terms = tmp_path / "market.toml"
    terms.write_text("\n".join(line for line in EXAMPLE.read_text().splitlines() if not line.startswith("token")))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(anvil(tmp_path / "anvil.log")) as chain:
        key, _ = create_key(tmp_path, "deployer", chain.private_keys[0])
        command = [sys.executable, "-m", "openlora.node", "deploy", str(terms), "--rpc", chain.rpc_url, "--json"]
        flags = ["--chain-id", "31337", "--keystore", str(key.keystore), "--password-file", str(key.password_file)]
        out = tmp_path / "deployment.json"
        done = subprocess.run(
            [*command, *flags, "--out", str(out)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["deployment"] == str(out)
        assert Deployment.from_json(out.read_text()).chain_id == 31337
        again = subprocess.run(
            [*command, *flags, "--out", str(out)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (again.returncode, "exists already" in again.stderr) == (2, True)
