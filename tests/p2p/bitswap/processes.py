"""Drives peers that are processes of their own, and can be killed."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 180.0  # with an answer: then the child is killed, and the test fails


class ChildProcess:
    """A module that answers each line with a line of JSON; leaving the context kills it."""

    def __init__(self, module_and_arguments: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *module_and_arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=REPOSITORY,
        )
        self.hello = self.heard()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        patience = threading.Timer(PATIENCE_S, self.process.kill)
        patience.start()
        line = self.process.stdout.readline()
        patience.cancel()
        assert line, "the peer has ended"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.heard()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class PeerProcess(ChildProcess):
    """A peer of ours whose identity and blocks outlive it, in `state`."""

    def __init__(self, state: Path, manner: str = "honest") -> None:
        super().__init__(["tests.p2p.bitswap.peer_process", str(state), manner])
