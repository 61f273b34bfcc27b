"""The engine as a child process that is kept alive.

Its death fails the work in flight and nothing else: the next child is started with growing pauses, gets the same
adapters, and the same `EngineClient` goes on with it. An engine that answers nothing for `hang_timeout_s` is killed,
since a kernel that never returns looks the same as one that takes long.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from openlora.node.engine.client import Connection, EngineClient
from openlora.node.engine.messages import Event, ModelInfo
from openlora.node.errors import EngineDied, OpenLoraError
from openlora.node.frames import AsyncFrames
from openlora.node.supervise import Backoff, Child, ending, spawn
from openlora.node.tasks import running

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-m", "openlora.node.engine.process")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the child serves, and how patient we are with it."""

    model: Path
    dtype: str = "auto"
    limits: Mapping[str, int] = field(default_factory=dict)  # fields of EngineLimits, for memory and batch sizes
    command: tuple[str, ...] = ENGINE_COMMAND
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    hang_timeout_s: float = 300.0
    probe_interval_s: float = 15.0
    restart_first_s: float = 0.5
    restart_max_s: float = 30.0
    restart_wait_s: float = 30.0  # how long a request waits for the next engine before it fails


@asynccontextmanager
async def supervised_engine(options: EngineOptions, state_dir: Path) -> AsyncIterator[EngineClient]:
    """The client of an engine child that is restarted whenever it ends, until the block does.

    Raises ModelError with the engine's own sentence if the model cannot be served, EngineDied if the first child ends
    or is not ready within `start_timeout_s`.
    """
    socket_path = state_dir / "engine.sock"
    life = await _start(options, socket_path)
    client = EngineClient(life.info, options.restart_wait_s)
    async with running(_keep_alive(client, life, options, socket_path), "engine-supervisor"):
        yield client


@dataclass(frozen=True, slots=True)
class _Life:
    child: Child
    connection: Connection
    info: ModelInfo

    async def stop(self, grace_s: float) -> None:
        self.connection.shut_down()
        await self.child.stop(grace_s)


async def _start(options: EngineOptions, socket_path: Path) -> _Life:
    limits = msgspec.json.encode(options.limits).decode()
    arguments = ("--model", str(options.model), "--dtype", options.dtype, "--limits", limits)
    child = await spawn((*options.command, *arguments), socket_path, options.start_timeout_s)
    connection = Connection(AsyncFrames[Event](child.reader, child.writer, Event))
    try:
        async with asyncio.timeout(options.start_timeout_s):
            info = await connection.handshake()
    except TimeoutError:
        await child.stop(0)
        raise EngineDied(f"the engine had not loaded {options.model} after {options.start_timeout_s:g} s") from None
    except BaseException:
        await child.stop(1.0)
        raise
    return _Life(child, connection, info)


async def _keep_alive(client: EngineClient, life: _Life, options: EngineOptions, socket_path: Path) -> None:
    loop = asyncio.get_running_loop()
    backoff = Backoff(options.restart_first_s, options.restart_max_s)
    while True:
        started_s = loop.time()
        try:
            await _serve(client, life.connection, options)
        finally:
            client.detach()
            await life.stop(options.stop_timeout_s)
        log.error("event=engine_ended how=%r life_s=%.1f", ending(life.child.process), loop.time() - started_s)
        life = await _restart(backoff, loop.time() - started_s, options, socket_path)
        log.info("event=engine_restarted pid=%d", life.child.process.pid)


async def _serve(client: EngineClient, connection: Connection, options: EngineOptions) -> None:
    """Returns when the engine has ended, or hangs."""
    async with running(connection.read(), "engine-reader") as reader:
        try:
            await client.attach(connection)
            while not reader.done():
                await asyncio.wait({reader}, timeout=options.probe_interval_s)
                async with asyncio.timeout(options.hang_timeout_s):
                    await connection.status()
        except EngineDied:
            return
        except TimeoutError:
            log.error("event=engine_hangs timeout_s=%g", options.hang_timeout_s)


async def _restart(backoff: Backoff, life_s: float, options: EngineOptions, socket_path: Path) -> _Life:
    while True:
        await asyncio.sleep(backoff.after(life_s))
        try:
            return await _start(options, socket_path)
        except OpenLoraError as error:
            log.error("event=engine_restart_failed reason=%r", str(error))
            life_s = 0.0
