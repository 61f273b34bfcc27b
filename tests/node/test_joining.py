"""Children that another hand starts: they find the agent, are what it asks for, and may be killed and come back."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from openlora.node.children import Joining
from openlora.node.engine.client import EngineClient
from openlora.node.engine.messages import Sampling
from openlora.node.engine.supervisor import EngineOptions, supervised_engine
from openlora.node.errors import ChildDied, ConfigError, EngineDied, ModelError
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import supervised_network
from tests.node import fake_engine
from tests.node.network.nodes import PATIENCE, REGISTRY
from tests.node.test_supervise import SILENT

FAKE_ENGINE = (sys.executable, fake_engine.__file__)


@contextmanager
def service(socket_path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """What a unit's ExecStart runs. Nobody but this starts it again."""
    command = (sys.executable, "-m", "openlora.node.joining", str(socket_path), *arguments)
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


async def answer(client: EngineClient) -> list[int]:
    answer = client.generate([9, 3], Sampling(max_tokens=4))
    return [token.token_id async for tokens in answer for token in tokens]


async def dies(client: EngineClient) -> None:
    """Returns when an answer fails for it."""
    with suppress(EngineDied):
        while True:
            await answer(client)


@asynccontextmanager
async def joined_engine(folder: Path, **options: float) -> AsyncIterator[EngineClient]:
    engine = EngineOptions(folder, command=FAKE_ENGINE, restart_first_s=0.01, **options)  # type: ignore[arg-type]
    async with supervised_engine(engine, folder, spawn=False) as client:
        yield client


async def test_an_engine_of_another_hand_is_killed_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "engine-0.sock"
    with ExitStack() as services:
        first = services.enter_context(service(path))
        async with joined_engine(tmp_path) as client:
            assert not path.exists(), "a second child could come"
            before = await answer(client)
            first.kill()
            await dies(client)
            second = services.enter_context(service(path))
            assert await answer(client) == before
        assert await asyncio.to_thread(second.wait, 10) == 0, "it ends with the agent, in order"


async def test_an_engine_that_hangs_is_left_and_ends_itself(tmp_path: Path) -> None:
    """The agent may not kill another user's process."""
    with ExitStack() as services:
        first = services.enter_context(service(tmp_path / "engine-0.sock"))
        patience = {"hang_timeout_s": 0.2, "probe_interval_s": 0.05, "stop_timeout_s": 0.1}
        async with joined_engine(tmp_path, **patience) as client:
            before = await answer(client)
            os.kill(first.pid, signal.SIGSTOP)
            await dies(client)
            services.enter_context(service(tmp_path / "engine-0.sock"))
            assert await answer(client) == before
        os.kill(first.pid, signal.SIGCONT)
        assert await asyncio.to_thread(first.wait, 10) == 0


def test_a_child_that_hangs_ends_soon_after_its_agent_has_gone() -> None:
    ours, its = socket.socketpair()
    hang = "import time; from openlora.node.joining import connected;"
    hang += f"sock = connected('fd:{its.fileno()}', end_within_s=0.1); sock.send(b'x'); time.sleep(60)"
    with ours, subprocess.Popen([sys.executable, "-c", hang], pass_fds=[its.fileno()]) as process:
        its.close()
        assert ours.recv(1) == b"x"
        ours.close()
        assert process.wait(10) == 1


async def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    options = EngineOptions(tmp_path / "none", command=FAKE_ENGINE)
    with service(tmp_path / "engine-0.sock"), pytest.raises(ModelError, match="none does not exist"):
        async with supervised_engine(options, tmp_path, spawn=False):
            pass


async def test_who_may_come_is_the_folders_to_say_and_nobody_is_waited_for_in_vain(tmp_path: Path) -> None:
    children = Joining(SILENT, tmp_path / "engine-0.sock")
    waiting = asyncio.create_task(children.next(0.2))
    await asyncio.sleep(0)
    assert stat.S_IMODE(children.socket_path.stat().st_mode) == 0o660
    with pytest.raises(ChildDied, match=r"no service of this node has come to .* within 0\.2 s"):
        await waiting
    assert not children.socket_path.exists()
    with pytest.raises(ConfigError, match="openlora service install"):
        await Joining(SILENT, tmp_path / "none" / "engine-0.sock").next(0.1)


@pytest.mark.slow
async def test_a_network_of_another_hand_keeps_its_own_identity(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    options = NetworkOptions(
        chain_id=1,
        registry=REGISTRY,
        content_dir=str(tmp_path / "blocks"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        mdns=False,
        nat=False,
    )
    path = tmp_path / "network.sock"
    with ExitStack() as services:
        first = services.enter_context(service(path, "--state", str(own)))
        async with supervised_network(options, tmp_path, patience=PATIENCE, joins_at=path) as network:
            peer_id = network.peer_id
            await network.stats()
            first.kill()
            while network.alive:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.02)
            services.enter_context(service(path, "--state", str(own)))
            await network.stats()
            assert network.peer_id == peer_id
    assert (own / "libp2p.key").exists()
    assert not (tmp_path / "libp2p.key").exists()
