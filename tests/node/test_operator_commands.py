"""status, drain and reload against an agent's socket."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.testing
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from fastapi.responses import Response

from openlora.node.api.agent import serve_unix
from openlora.node.api.steering import steering_router
from openlora.node.cli.main import app
from openlora.node.cli.output import Output
from openlora.node.cli.steer import until_idle
from openlora.node.config import NodeConfig, load
from openlora.node.database import Database
from openlora.node.errors import AgentUnreachable
from openlora.node.steering import Steering
from openlora.node.terms import Terms
from tests.node.test_config import write
from tests.node.test_status_screen import BUSY, JOBS, OPERATOR


def agent_api(steering: Steering) -> FastAPI:
    """The routes that these commands use, over a busy node's snapshot."""
    api = FastAPI()
    api.include_router(steering_router(steering))

    @api.get("/v1/state")
    async def state() -> Response:
        queue = msgspec.structs.replace(BUSY.queue, draining=steering.terms.draining)
        return Response(msgspec.json.encode(msgspec.structs.replace(BUSY, queue=queue)))

    @api.get("/v1/jobs")
    async def jobs(limit: int) -> dict[str, Any]:
        return {"jobs": JOBS[:limit], "next_before": None}

    return api


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """The configuration of a node whose agent answers."""
    path = write(tmp_path)
    chosen = load(path, NodeConfig)
    steering = Steering(path, chosen, Terms(chosen.market, chosen.storage.min_free_bytes), lambda: None)
    with start_blocking_portal() as portal:
        serving = portal.start_task_soon(serve_unix, agent_api(steering), chosen.socket)
        while not chosen.socket.exists():
            portal.call(asyncio.sleep, 0.01)
        yield path
        serving.cancel()


def typed(*arguments: object, code: int = 0) -> str:
    done = typer.testing.CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.stdout


def test_status_prints_one_look_where_nobody_watches(config: Path):
    shown = typed("status", "--config", config)
    assert OPERATOR in shown
    assert "can pay for 12 more jobs" in shown
    assert json.loads(typed("status", "--config", config, "--json"))["node"]["operator"] == OPERATOR


def test_drain_says_what_is_left_and_whether_it_ended(config: Path):
    assert "4 jobs to finish" in typed("drain", "--config", config)
    assert "● draining" in typed("status", "--config", config)
    typed("drain", "--config", config, "--wait", "--timeout", "0.01", code=1)
    assert "claims jobs again" in typed("drain", "--config", config, "--undo")


def test_reload_names_what_it_took_over_and_what_waits(config: Path):
    config.write_text(config.read_text().replace("max_live_jobs = 8", "max_live_jobs = 9").replace("0.5", "0.25"))
    config.write_text(config.read_text().replace("kv_tokens = 32768", "kv_tokens = 4096"))
    shown = typed("reload", "--config", config)
    assert "taken over: market.max_live_jobs" in shown
    assert "at the next start: engine.kv_tokens" in shown


def test_without_an_agent_they_say_so(tmp_path: Path):
    for command in ("status", "drain", "reload"):
        done = typer.testing.CliRunner().invoke(app, [command, "--config", str(write(tmp_path))])
        assert isinstance(done.exception, AgentUnreachable)


def test_an_agent_that_starts_is_not_said_to_be_missing(tmp_path: Path):
    path = write(tmp_path)
    state = load(path, NodeConfig).state_dir
    state.mkdir(parents=True, exist_ok=True)
    with Database(state / "journal.sqlite", ()):
        done = typer.testing.CliRunner().invoke(app, ["status", "--config", str(path)])
    assert f"the agent (process {os.getpid()}) does not answer" in str(done.exception)
    assert "start one" not in str(done.exception)


def test_a_drain_ends_when_queue_and_sessions_are_done(capsys: pytest.CaptureFixture[str]):
    def look(live: int, running: int) -> dict[str, Any]:
        queue = {"live": [{}] * live, "active_jobs": 0}
        return {
            "queue": queue,
            "engine": {"running_requests": running, "waiting_requests": 0},
            "jobs_by_state": {"committed": 2},
        }

    looks = iter([look(2, 0), look(1, 1), look(0, 1), look(0, 0)])
    assert until_idle(lambda: next(looks), 60, Output(as_json=False))
    assert capsys.readouterr().out.splitlines() == [
        "draining: 2 jobs to finish",
        "draining: 1 job to finish",
        "drained: nothing is under way, the node may be stopped; 2 committed jobs are paid after their window",
    ]


def test_the_doctor_shows_code_cause_and_fix_and_exits_1(tmp_path: Path):
    lines = typed("doctor", "--config", tmp_path / "node.toml", code=1).splitlines()
    assert lines[0] == "✗ config_missing"
    assert str(tmp_path) in lines[1]
    assert lines[2].startswith("  → make one with `openlora init`")
    assert lines[-1].startswith("one thing keeps this node from earning")
    report = json.loads(typed("doctor", "--config", tmp_path / "node.toml", "--json", code=1))
    assert [finding["code"] for finding in report["findings"]] == ["config_missing"]


@pytest.mark.slow
def test_a_terminal_has_a_live_screen_that_ctrl_c_leaves(config: Path):
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "openlora.node", "status", "--config", str(config)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while shown.count(b"latest jobs") < 2:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # what a terminal says at its end
            while said := os.read(ours, 4096):
                shown += said
    os.close(ours)
    assert process.returncode == 0, shown.decode()[-500:]
    assert shown.startswith(b"\x1b[?1049h"), "on a screen of its own"
    assert b"\x1b[?1049l" in shown, "which is given back"
    assert b"Traceback" not in shown
