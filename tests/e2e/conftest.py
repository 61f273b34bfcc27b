"""The command line as people use it, and a dev network of a module's own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from openlora.node.devnet import Devnet, devnet

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def openlora() -> Command:
    """Runs `openlora` with arguments, to its end."""

    def run(*arguments: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "openlora.node", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    return run


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Devnet]:
    """The market deployed on a chain of its own, and nobody serving. Its loop is a thread's, so tests may block."""
    folder = tmp_path_factory.mktemp("net")
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(devnet(folder, model_dir)) as network:
        yield network
