"""A node as its service manager runs it: agent, network process and engine apart, each started again when it ends."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.agents import answers, wait_until

_PR_SET_MDWE = 65  # linux/prctl.h, since 6.3: what MemoryDenyWriteExecute= is


@dataclass
class Service:
    """`Restart=always`, by another hand than the agent's."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    _stopping: bool = False

    @contextmanager
    def running(self) -> Iterator["Service"]:
        self._start()
        keeper = threading.Thread(target=self._keep)
        keeper.start()
        try:
            yield self
        finally:
            self._stopping = True
            self.process.kill()
            keeper.join()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def _keep(self) -> None:
        while True:
            self.process.wait()
            if self._stopping:
                return
            self._start()


@dataclass
class Services:
    agent: subprocess.Popen[bytes]
    engine: Service
    network: Service
    notified: socket.socket
    folder: Path

    def processes(self) -> dict[str, int]:
        pids = {"agent": self.agent.pid, "engine": self.engine.process.pid, "network": self.network.process.pid}
        return {name: pid for name, pid in pids.items() if Path(f"/proc/{pid}").exists()}

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def heard(self) -> set[str]:
        """What the service manager has been told since the last time."""
        words = set()
        while True:
            try:
                words |= set(self.notified.recv(4096).decode().splitlines())
            except BlockingIOError:
                return words


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """The node of the `node.toml` in `folder`, from when it answers."""
    for each in ("engine", "p2p", "identity"):
        (folder / each).mkdir()
    shutil.move(folder / "libp2p.key", folder / "identity")  # by which its peers know it
    joining = (sys.executable, "-m", "openlora.node.joining")
    network = Service(
        "network",
        (*joining, str(folder / "p2p/network.sock"), "--state", str(folder / "identity")),
        folder / "network.log",
    )
    engine = Service("engine", (*joining, str(folder / "engine/engine-0.sock")), folder / "engine.log")
    with ExitStack() as stack:
        notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notified.bind(str(folder / "notify"))
        notified.setblocking(False)
        stack.enter_context(network.running())
        stack.enter_context(engine.running())
        command = [sys.executable, "-m", "openlora.node", "run", "--config", str(folder / "node.toml")]
        with (folder / "agent.log").open("ab") as log:
            agent = subprocess.Popen(
                [*command, "--children", str(folder)],
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "1500000"},
                preexec_fn=_no_new_code,
            )
        try:
            wait_until(lambda: answers(folder) or agent.poll() is not None, "the agent's start")
            assert agent.poll() is None, (folder / "agent.log").read_text()[-2000:]
            yield Services(agent, engine, network, notified, folder)
        finally:
            agent.kill()
            agent.wait()


def _no_new_code() -> None:
    """As in the agent's unit; an older kernel has no such call, and says so."""
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, 1, 0, 0, 0)
