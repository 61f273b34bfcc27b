"""A node as its operator starts it: `openlora run` in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openlora.node import agent_client
from openlora.node.devnet import Devnet
from openlora.node.errors import AgentUnreachable

PATIENCE_S = 90


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {PATIENCE_S} s"
        time.sleep(0.02)


def answers(net: Devnet) -> bool:
    try:
        return bool(agent_client.get(net.folder / "agent.sock", "/v1/state"))
    except AgentUnreachable:
        return False


@contextmanager
def agent(net: Devnet) -> Iterator[subprocess.Popen[bytes]]:
    """`openlora run`, from when it answers; killed at the end if it still runs."""
    with (net.folder / "node.log").open("ab") as log:
        command = [sys.executable, "-m", "openlora.node", "run", "--config", str(net.node_config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(net) or process.poll() is not None, "the agent's start")
        assert process.poll() is None, (net.folder / "node.log").read_text()[-2000:]
        yield process
    finally:
        process.kill()
        process.wait()
