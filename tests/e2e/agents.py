"""A node as its operator starts it: `openlora run` in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openlora.node import agent_client
from openlora.node.errors import AgentUnreachable

PATIENCE_S = 180  # as much as a machine with other work may need


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {PATIENCE_S} s"
        time.sleep(0.02)


def answers(folder: Path) -> bool:
    try:
        return bool(agent_client.get(folder / "agent.sock", "/v1/state"))
    except AgentUnreachable:
        return False


@contextmanager
def agent(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`openlora run` on the `node.toml` in `folder`, from when it answers; killed at the end if it still runs."""
    with (folder / "node.log").open("ab") as log:
        command = [sys.executable, "-m", "openlora.node", "run", "--config", str(folder / "node.toml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(folder) or process.poll() is not None, "the agent's start")
        assert process.poll() is None, (folder / "node.log").read_text()[-2000:]
        yield process
    finally:
        process.kill()
        process.wait()
