"""The units that we ship: how much they let through, that systemd reads them, and that they are put in their places."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import typer.testing

from openlora.node.cli.main import app
from openlora.node.cli.service import refuse_unless_possible
from openlora.node.config import NodeConfig, load
from openlora.node.errors import ConfigError
from openlora.node.service_units import PASSWORD, UNITS, is_hidden, misfits, own_bin_dir, to_install

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian: systemd)"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes users and gives files away, below a folder")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=30, check=False)


def cli(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["service", *map(str, arguments)])


@needs_systemd
@pytest.mark.parametrize(("unit", "tenths"), [("agent", 15), ("p2p", 15), ("engine@", 25)])
def test_a_unit_lets_little_through(repository, unit, tenths):
    path = repository / f"systemd/openlora-{unit}.service"
    done = run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={tenths}", path)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@needs_systemd
def test_systemd_finds_no_fault_in_what_is_installed(tmp_path):
    assert cli("install", "--prefix", tmp_path).exit_code == 0
    units = [tmp_path / "etc/systemd/system" / unit.replace("@", "@0") for unit in UNITS]
    engine = tmp_path / "etc/systemd/system/openlora-engine@.service"
    shutil.copy(engine, units[-1])
    done = run("systemd-analyze", "verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ExecStart={own_bin_dir()}/python " in engine.read_text()


@as_root
@needs_systemd
def test_users_and_folders_are_what_the_processes_share(tmp_path):
    cli("install", "--prefix", tmp_path)
    done = run("systemd-sysusers", f"--root={tmp_path}", "openlora.conf")
    assert done.returncode == 0, done.stderr
    ids = {line.split(":")[0]: int(line.split(":")[2]) for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert ids.keys() >= {"openlora", "openlora-engine", "openlora-p2p"}
    done = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", "openlora.conf")
    assert done.returncode == 0, done.stderr
    lines = [line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()]
    groups = {name: int(number) for name, _, number, _ in lines}
    assert {name: members for name, _, _, members in lines}["openlora-p2p"] == "openlora", (
        "it reads what that one writes"
    )
    for folder, group, mode in (
        ("run/openlora/engine", "openlora-engine", 0o2750),
        ("run/openlora/p2p", "openlora-p2p", 0o2750),
        ("var/lib/openlora/adapters", "openlora-engine", 0o2750),
        ("var/lib/openlora/content", "openlora-p2p", 0o2770),
    ):
        status = (tmp_path / folder).stat()
        assert (status.st_uid, status.st_gid) == (ids["openlora"], groups[group]), folder
        assert stat.S_IMODE(status.st_mode) == mode, folder
    store = (tmp_path / "etc/credstore.encrypted").stat()
    assert (store.st_uid, stat.S_IMODE(store.st_mode)) == (0, 0o700)


@pytest.mark.skipif(not shutil.which("systemd-creds"), reason="needs systemd-creds (Debian: systemd)")
def test_the_guides_command_makes_the_credential_that_the_agent_loads(repository, tmp_path, monkeypatch):
    """`systemd-creds` with a machine's secret of its own, and the store in another place."""
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "credential.secret"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "hot.password").write_text("correct horse\n")
    guide = (repository / "configs/guides/operator.md").read_text()
    (command,) = re.findall(r"^systemd-creds .*$", guide, flags=re.MULTILINE)
    assert command in cli("install", "--prefix", tmp_path / "root").output
    words = shlex.split(command.replace("/etc/credstore.encrypted", str(tmp_path / "store")))
    made = run(*words, "--with-key=host")
    assert made.returncode == 0, made.stderr
    unit = (repository / "systemd/openlora-agent.service").read_text()
    assert f"\nLoadCredentialEncrypted={PASSWORD.name}\n" in unit
    stored = tmp_path / "store" / PASSWORD.name
    assert b"horse" not in stored.read_bytes()
    assert run("systemd-creds", "decrypt", stored, "-").stdout == "correct horse\n"


def test_what_is_installed_goes_away_again_and_nothing_else(tmp_path):
    other = tmp_path / "etc/systemd/system/other.service"
    other.parent.mkdir(parents=True)
    other.touch()
    assert "would be written" in cli("install", "--prefix", tmp_path, "--dry-run").output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    written = json.loads(cli("install", "--prefix", tmp_path, "--json").output)["written"]
    assert len(written) == len(set(written)) == 7
    assert all(Path(path).is_file() for path in written)
    removed = json.loads(cli("uninstall", "--prefix", tmp_path, "--json").output)["removed"]
    assert sorted(removed) == sorted(written)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    assert "no services" in cli("uninstall", "--prefix", tmp_path).output


def test_on_the_machine_itself_users_folders_and_systemd_come_after_the_files():
    plan = to_install(Path("/"), Path("/opt/openlora/bin"))
    assert [command[0] for command in plan.commands] == ["systemd-sysusers", "systemd-tmpfiles", "systemctl"]
    assert all(Path(word) in plan.files for command in plan.commands for word in command if word.startswith("/"))


@pytest.mark.parametrize(
    ("has_systemd", "is_root", "words"), [(False, True, "not run by systemd"), (True, False, "with sudo")]
)
def test_where_it_cannot_be_it_says_so(has_systemd, is_root, words):
    with pytest.raises(ConfigError, match=words):
        refuse_unless_possible(has_systemd, is_root)
    refuse_unless_possible(True, True)


@pytest.mark.parametrize(("folder", "hidden"), [("/home/me/venv/bin", True), ("/opt/openlora/bin", False)])
def test_a_program_that_the_sandbox_hides_is_told_apart(folder, hidden):
    assert is_hidden(Path(folder)) is hidden


def test_the_example_configuration_suits_the_services(repository, tmp_path):
    text = (repository / "configs/node.example.toml").read_text()
    path = tmp_path / "node.toml"
    path.write_text(text)
    assert list(misfits(load(path, NodeConfig))) == []
    path.write_text(text.replace("/var/lib/", "/srv/").replace("devices = []", 'devices = ["cuda:0", "cuda:1"]'))
    said = " ".join(misfits(load(path, NodeConfig)))
    for word in ("state_dir", "content_dir", "model.path", "openlora-engine@1"):
        assert word in said
