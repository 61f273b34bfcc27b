"""Faults injected into a healthy node on a real chain: the doctor names each, and says what to do."""

import asyncio
import json
import os
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from eth_account import Account

from openlora.node.devnet import OLRA
from openlora.node.doctor.finding import EXPLAINED, Code
from openlora.node.doctor.journal import JournalFacts, check_agent
from openlora.node.doctor.machine import Instruments
from openlora.node.journal import Identity, Journal
from openlora.node.upgrade import check_upgrade
from tests.node.doctor.clinic import Clinic, Patient, clinic, write_key
from tests.node.telemetry.broker import free_port, mosquitto

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("doctor")]

STRANGER = Account.from_key(b"\x09" * 32)
DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def healthy(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with portal.wrap_async_context_manager(clinic(tmp_path_factory.mktemp("clinic"))) as opened:
        yield opened


@pytest.fixture
def patient(healthy: Clinic, portal: BlockingPortal, tmp_path: Path) -> Iterator[Patient]:
    """Whatever a test does to the chain is undone."""
    snapshot = portal.call(healthy.chain.rpc, "evm_snapshot")
    yield healthy.patient(tmp_path)
    portal.call(healthy.chain.rpc, "evm_revert", snapshot)


async def found(patient: Patient, code: str, **options: Any) -> str:
    """The cause that the doctor gives for this fault, in time; critical ones make the node unhealthy."""
    report = await patient.report(**options)
    (finding, *_) = [finding for finding in report.findings if finding.code == code] or [None]
    assert finding is not None, report.findings
    assert report.seconds < DEADLINE_S
    assert finding.fix
    assert finding.severity != "critical" or not report.healthy
    return finding.cause


async def test_a_healthy_node_has_no_fault(patient: Patient):
    report = await patient.report()
    assert report.findings == ()
    assert report.healthy
    assert not report.agent_runs
    assert report.operator == patient.clinic.operator.address
    assert report.hot_key == patient.clinic.hot_key.address
    assert report.seconds < DEADLINE_S
    assert not list((patient.folder / "state").iterdir()), "nothing is changed"


# ---- configuration and keys -----------------------------------------------------------------------------------------


async def test_config_missing(patient: Patient):
    patient.config.unlink()
    assert "node.toml" in await found(patient, "config_missing")


async def test_config_invalid(patient: Patient):
    patient.config.write_text(patient.config.read_text().replace("poll_s", "pol_s").replace("max_running", "max_run"))
    cause = await found(patient, "config_invalid")
    assert "unknown key chain.pol_s" in cause
    assert "unknown key engine.max_run" in cause


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: (folder / "deployment.json").unlink(), "deployment_missing"),
        (lambda folder: (folder / "deployment.json").write_text("{}"), "deployment_invalid"),
        (lambda folder: change_json(folder / "deployment.json", chain_id=5), "deployment_other_chain"),
        (lambda folder: (folder / "hot.json").unlink(), "keystore_missing"),
        (lambda folder: (folder / "hot.json").write_text("{}"), "keystore_unreadable"),
        (lambda folder: replace_by_folder(folder / "hot.json"), "keystore_unreadable"),
        (lambda folder: (folder / "hot.json").chmod(0o644), "keystore_exposed"),
        (lambda folder: (folder / "hot.password").chmod(0o604), "keystore_exposed"),
        (lambda folder: (folder / "hot.password").unlink(), "password_missing"),
        (lambda folder: (folder / "hot.password").write_text("guess"), "password_wrong"),
    ],
)
async def test_key_and_deployment(patient: Patient, damage: Callable[[Path], object], code: str):
    damage(patient.folder)
    assert str(patient.folder) in await found(patient, code)


async def test_a_credential_of_systemd_is_there_while_the_unit_runs(patient: Patient):
    patient.put("password_file", '"/run/credentials/openlora-agent.service/hot.password"')
    text = patient.config.read_text()
    head, _, mqtt = text.partition("[telemetry.mqtt]")
    patient.config.write_text(f"{head}[telemetry.mqtt]\n")
    assert "systemd" in await found(patient, "password_missing")
    report = await patient.report()
    assert report.healthy
    assert report.operator == patient.clinic.operator.address, "the keystore says whose it is"
    assert mqtt


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# ---- the chain ------------------------------------------------------------------------------------------------------


async def test_rpc_down(patient: Patient):
    assert "127.0.0.1" in await found(patient.put("rpc_urls", f'["http://127.0.0.1:{free_port()}"]'), "rpc_down")
    assert "not_checked" in await patient.codes()


async def test_rpc_that_never_answers(patient: Patient):
    async with listening(lambda reader, writer: asyncio.sleep(60)) as port:
        assert "no answer" in await found(patient.put("rpc_urls", f'["http://127.0.0.1:{port}"]'), "rpc_down")


async def test_one_rpc_of_two_is_down(patient: Patient):
    patient.put("rpc_urls", f'["http://127.0.0.1:{free_port()}", "{patient.clinic.chain.rpc_url}"]')
    report = await patient.report()
    assert [(str(found.code), str(found.severity)) for found in report.findings] == [("rpc_down", "warning")]
    assert report.healthy


async def test_rpc_of_another_chain(patient: Patient):
    change_json(patient.folder / "deployment.json", chain_id=1)
    cause = await found(patient.put("chain_id", "1"), "rpc_wrong_chain")
    assert "31337" in cause


async def test_rpc_behind_the_others(patient: Patient):
    await patient.clinic.chain.rpc("anvil_mine", hex(40))
    async with relay(patient, behind=30) as port:
        patient.put("rpc_urls", f'["{patient.clinic.chain.rpc_url}", "http://127.0.0.1:{port}"]')
        assert "30 blocks" in await found(patient, "rpc_behind")


async def test_rpc_with_an_old_head(patient: Patient):
    async with relay(patient, older_s=3_600) as port:
        assert "old" in await found(patient.put("rpc_urls", f'["http://127.0.0.1:{port}"]'), "rpc_behind")


async def test_clock_off(patient: Patient):
    assert "ahead" in await found(patient, "clock_off", clock=lambda: time.time() + 3_600)
    assert "behind" in await found(patient, "clock_off", clock=lambda: time.time() - 3_600)


async def test_contracts_missing(patient: Patient):
    change_json(patient.folder / "deployment.json", vault=STRANGER.address, sessions=STRANGER.address)
    assert "vault, sessions" in await found(patient, "contracts_missing")


async def test_contracts_of_something_else(patient: Patient):
    deployment = patient.clinic.deployment
    change_json(patient.folder / "deployment.json", job_queue=deployment.vault)
    await found(patient, "contracts_foreign")
    change_json(patient.folder / "deployment.json", job_queue=deployment.job_queue, token=STRANGER.address)
    assert "token" in await found(patient, "contracts_foreign")


async def test_market_paused(patient: Patient):
    protocol = Account.from_key(patient.clinic.chain.private_keys[0])
    await patient.clinic.market(protocol, "queue.pause")
    await found(patient, "market_paused")


async def test_a_program_that_the_network_has_left_behind(patient: Patient):
    major, minor, patch = map(int, version("openlora").split("."))
    await want_release(patient, major, minor, patch)
    assert "program_outdated" not in await patient.codes()
    await want_release(patient, major, minor, patch + 1)
    assert f"wants version {major}.{minor}.{patch + 1} or later" in await found(patient, "program_outdated")


async def want_release(patient: Patient, *release: int) -> None:
    owner = Account.from_key(patient.clinic.chain.private_keys[0])
    await patient.clinic.market(owner, "governance.set_min_agent_version", *release)


async def test_hot_key_unfunded(patient: Patient):
    hot_key = patient.clinic.hot_key.address
    await patient.clinic.chain.rpc("anvil_setBalance", hot_key, hex(0))
    assert "0 more jobs" in await found(patient, "hot_key_unfunded")
    report = await patient.report()
    await patient.clinic.chain.rpc("anvil_setBalance", hot_key, hex(12 * 400_000 * await gas_price(patient)))
    assert "12 more jobs" in await found(patient, "hot_key_unfunded")
    assert not report.healthy
    assert (await patient.report()).healthy


async def gas_price(patient: Patient) -> int:
    block: Any = await patient.clinic.chain.rpc("eth_getBlockByNumber", "latest", False)
    tip: Any = await patient.clinic.chain.rpc("eth_maxPriorityFeePerGas")
    return int(block["baseFeePerGas"], 16) + int(tip, 16)


async def test_hot_key_unauthorised(patient: Patient):
    write_key(patient.folder, "hot", STRANGER)
    assert patient.clinic.hot_key.address in await found(patient, "hot_key_unauthorised")
    (patient.folder / "operator.toml").unlink()
    await found(patient, "hot_key_unauthorised")


async def test_registry_without_the_key_of_private_jobs(patient: Patient):
    await patient.clinic.market(patient.clinic.operator, "nodes.set_metadata", bytes(32), bytes(32), b"")
    assert "private job" in await found(patient, "encryption_key_untold")
    assert (await patient.report()).healthy


async def test_not_registered(patient: Patient):
    write_key(patient.folder, "hot", STRANGER)
    write_key(patient.folder, "operator", STRANGER)
    assert "register" in await found(patient, "not_registered")


async def test_stake_too_low_and_on_its_way_out(patient: Patient):
    await patient.clinic.market(patient.clinic.operator, "nodes.begin_unstake", 49 * OLRA)
    assert "49 of 50" in await found(patient, "stake_exiting")
    assert (await patient.report()).healthy
    await patient.clinic.market(patient.clinic.operator, "nodes.begin_unstake", OLRA // 2)
    assert "0.5 tokens" in await found(patient, "stake_too_low")


# ---- model and engine -----------------------------------------------------------------------------------------------


async def test_model_missing(patient: Patient):
    assert "/nowhere" in await found(patient.put("path", '"/nowhere"'), "model_missing")


def a_model(patient: Patient) -> Path:
    """A copy of the healthy model, to be damaged."""
    copy = patient.folder / "model"
    shutil.copytree(patient.clinic.folder / "model", copy)
    patient.put("path", f'"{copy}"')
    return copy


async def test_tokenizer_missing(patient: Patient):
    (a_model(patient) / "tokenizer.json").unlink()
    assert "tokenizer.json" in await found(patient, "tokenizer_missing")


@pytest.mark.parametrize("text", ["{}", "no json", '{"model_type": "mystery"}'])
async def test_model_unreadable(patient: Patient, text: str):
    (a_model(patient) / "config.json").write_text(text)
    await found(patient, "model_unreadable")


async def test_weights_cut_short(patient: Patient):
    weights = a_model(patient) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    await found(patient, "model_unreadable")


async def test_model_of_another_id_than_any_recipes(patient: Patient):
    weights = a_model(patient) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    await found(patient, "model_unknown")


async def test_gpu_asked_for_and_missing(patient: Patient):
    cause = await found(
        patient.put("devices", '["cuda:7"]'), "device_missing", instruments=Instruments(nvml="no-such-library.so")
    )
    assert "0 GPUs" in cause
    assert "cpu:0-7" in await found(patient.put("devices", '["tpu:0"]'), "device_missing")
    assert "4095" in await found(patient.put("devices", '["cpu:4095"]'), "device_missing")


async def test_engine_backend_not_installed(patient: Patient):
    patient.put("backend", '"vllm"')
    assert "/nowhere/python" in await found(patient.put("python", '"/nowhere/python"'), "backend_missing")
    assert "has no vLLM" in await found(patient.put("python", '"/usr/bin/python3"'), "backend_missing")


async def test_compiler_missing(patient: Patient, tmp_path: Path):
    await found(patient, "compiler_missing", instruments=Instruments(search_path=str(tmp_path)))


async def test_too_little_memory(patient: Patient):
    assert "MiB" in await found(patient.put("kv_tokens", str(10**12)), "memory_too_small")


# ---- the state folder -----------------------------------------------------------------------------------------------


async def test_disk_low(patient: Patient):
    await found(patient.put("min_free_bytes", str(1 << 60)), "disk_low")


async def test_state_folder_not_writable(patient: Patient):
    assert "/proc/openlora" in await found(patient.put("state_dir", '"/proc/openlora"'), "state_unwritable")


def identity(patient: Patient, hot_key: str = "") -> Identity:
    return Identity.of(patient.clinic.deployment, hot_key or patient.clinic.hot_key.address)


async def test_journal_of_another_key(patient: Patient):
    Journal(patient.folder / "state", identity(patient, STRANGER.address)).close()
    assert STRANGER.address.lower() in await found(patient, "journal_foreign")


async def test_journal_of_the_operators_last_hot_key_is_its_own(patient: Patient):
    """But the new key must not have sent anything yet."""
    clinic = patient.clinic
    Journal(patient.folder / "state", Identity.of(clinic.deployment, STRANGER.address, clinic.operator.address)).close()
    assert await patient.codes() == set()
    await clinic.chain.rpc("anvil_setNonce", clinic.hot_key.address, hex(1))
    assert "1 transactions and this journal knows none" in await found(patient, "journal_behind")


async def test_journal_corrupt(patient: Patient):
    Journal(patient.folder / "state", identity(patient)).close()
    path = patient.folder / "state/journal.sqlite"
    path.write_bytes(b"SQLite format 3\0" + os.urandom(len(path.read_bytes()) - 16))
    await found(patient, "journal_corrupt")


async def test_journal_of_a_newer_version(patient: Patient):
    Journal(patient.folder / "state", identity(patient)).close()
    with closing(sqlite3.connect(patient.folder / "state/journal.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    assert "99" in await found(patient, "journal_newer")


async def test_journal_older_than_the_chain(patient: Patient):
    await patient.clinic.chain.rpc("anvil_setNonce", patient.clinic.hot_key.address, hex(7))
    assert "7 transactions and this journal knows none" in await found(patient, "journal_behind")
    with Journal(patient.folder / "state", identity(patient)) as journal:
        journal.set_meta("first nonce", "3")
    assert "knows 3" in await found(patient, "journal_behind")


async def test_a_second_agent(patient: Patient):
    with Journal(patient.folder / "state", identity(patient)):
        assert f"process {os.getpid()}" in await found(patient, "agent_second")
    assert await patient.codes() == set()


async def test_an_agent_that_hangs(patient: Patient):
    path = patient.folder / "state/agent.sock"
    with Journal(patient.folder / "state", identity(patient)), socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert "does not answer" in await found(patient, "agent_second")


async def test_an_agent_that_starts_is_waited_for_and_its_ports_are_its_own(patient: Patient):
    with Journal(patient.folder / "state", identity(patient)), socket.socket() as its_own:
        its_own.bind(("127.0.0.1", 0))
        its_own.listen()
        address = f'listen = ["/ip4/127.0.0.1/tcp/{its_own.getsockname()[1]}"]'
        patient.config.write_text(re.sub(r"^listen = \[.*", address, patient.config.read_text(), flags=re.MULTILINE))
        (finding,) = (await patient.report()).findings
    assert finding.code == "agent_second"
    assert finding.fix.startswith("wait a minute if it has just been started")


# ---- the network ----------------------------------------------------------------------------------------------------


async def test_ports_busy(patient: Patient):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        patient.put("listen", f'["/ip4/127.0.0.1/tcp/{port}"]')
        text = patient.config.read_text()
        network, _, telemetry = text.rpartition("[telemetry]\n")
        telemetry = telemetry.replace(telemetry.splitlines()[0], f'listen = "127.0.0.1:{port}"')
        patient.config.write_text(f"{network}[telemetry]\n{telemetry}")
        busy = [found.cause for found in (await patient.report()).findings if found.code == "port_busy"]
    assert [cause.split()[0] for cause in busy] == ["network.listen", "telemetry.listen"]


async def test_a_dashboard_for_everybody(patient: Patient, tmp_path: Path):
    text = patient.config.read_text()
    network, _, telemetry = text.rpartition("[telemetry]\n")

    def telemetry_is(lines: str) -> None:
        patient.config.write_text(f"{network}[telemetry]\n{lines}\n")

    assert telemetry
    telemetry_is('listen = "0.0.0.0:0"')
    assert "other machines" in await found(patient, "dashboard_unguarded")
    (tmp_path / "keys").write_text("short\n")
    telemetry_is(f'listen = "0.0.0.0:0"\nkey_file = "{tmp_path / "keys"}"')
    assert "16 letters" in await found(patient, "dashboard_unguarded")
    (tmp_path / "keys").write_text("a-key-that-is-long-enough\n")
    assert await patient.codes() == set()


async def test_bootstrap_unreachable(patient: Patient):
    gone = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/12D3KooWGone"
    assert gone in await found(patient.put("bootstrap", f'["{gone}"]'), "bootstrap_unreachable")
    assert "/p2p/" in await found(patient.put("bootstrap", '["/ip4/127.0.0.1/tcp/1"]'), "bootstrap_unreachable")


async def test_nobody_to_join_by(patient: Patient):
    await found(patient.put("bootstrap", "[]"), "network_lonely")


async def test_kubo_down(patient: Patient):
    await found(patient.put("kubo_rpc", f'"/ip4/127.0.0.1/tcp/{free_port()}"'), "kubo_down")
    async with listening(lambda reader, writer: no_kubo(writer)) as port:
        assert "no Kubo" in await found(patient.put("kubo_rpc", f'"/ip4/127.0.0.1/tcp/{port}"'), "kubo_down")


async def no_kubo(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def test_broker_down(patient: Patient):
    patient.put("tls", "false").put("host", '"127.0.0.1"')
    await found(patient.put("port", str(free_port())), "broker_down")


async def test_broker_refuses(patient: Patient, tmp_path: Path):
    (tmp_path / "broker").mkdir()
    password = tmp_path / "mqtt.password"
    password.write_text("guess")
    async with mosquitto(tmp_path / "broker", {patient.clinic.operator.address.lower(): "secret"}) as broker:
        patient.put("host", '"127.0.0.1"').put("port", str(broker.port)).put("ca_file", f'"{broker.ca_file}"')
        text = patient.config.read_text()
        head, _, mqtt = text.partition("[telemetry.mqtt]")
        mqtt = mqtt.replace('password_file = ""', f'password_file = "{password}"')
        patient.config.write_text(f"{head}[telemetry.mqtt]{mqtt}")
        await found(patient, "broker_refuses")
        password.write_text("secret")
        assert await patient.codes() == set()
        password.unlink()
        assert "cannot be read" in await found(patient, "broker_refuses")


def test_what_the_broker_refuses_of_the_running_agent():
    alert = {"code": "broker_refuses", "message": "the MQTT broker refuses what this node publishes"}
    state = {"node": {"hot_key": "0x01"}, "alerts": [alert]}
    (finding,) = check_agent(JournalFacts(Path("journal.sqlite"), True, state=state), "0x01")
    assert (finding.code, finding.cause) == (Code.BROKER_REFUSES, alert["message"])


# ---- an upgrade -----------------------------------------------------------------------------------------------------


async def test_an_upgrade_is_checked_against_the_contracts(patient: Patient):
    checks = {check.about: check for check in await check_upgrade(patient.config)}
    assert all(check.ok for check in checks.values())
    assert "parameters version 1: bond 1 OLRA, 32 claims" in checks["contracts"].said
    assert "no particular version" in checks["minimum"].said
    await want_release(patient, 9, 0, 0)
    (lacking,) = [check for check in await check_upgrade(patient.config) if not check.ok]
    assert (lacking.about, "9.0.0" in lacking.fix) == ("minimum", True)
    change_json(patient.folder / "deployment.json", vault=STRANGER.address)
    checks = {check.about: check for check in await check_upgrade(patient.config)}
    assert "vault" in checks["contracts"].said
    assert checks["contracts"].fix


# ---- prices ---------------------------------------------------------------------------------------------------------


async def test_prices(patient: Patient):
    await found(patient.put("min_in_price_wei_per_k", "0"), "ask_is_zero")
    await found(patient.put("max_live_jobs", "0"), "claims_off")


def test_every_code_is_explained():
    assert set(EXPLAINED) == set(Code)


# ---- servers of our own ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
) -> AsyncIterator[int]:
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await answer(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def relay(patient: Patient, *, behind: int = 0, older_s: int = 0) -> AsyncIterator[int]:
    """An RPC of the same chain whose newest block is an earlier or older one."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.partition("content-length: ")[2].split("\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                said = (await http.post(patient.clinic.chain.rpc_url, json=asked)).json()
                if asked["method"] == "eth_getBlockByNumber":
                    block = said["result"]
                    block["number"] = hex(int(block["number"], 16) - behind)
                    block["timestamp"] = hex(int(block["timestamp"], 16) - older_s)
                body = json.dumps(said).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            return

    async with listening(until_closed) as port:
        yield port
