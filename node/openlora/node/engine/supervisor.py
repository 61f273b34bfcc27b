"""The engine as a child process that is kept alive.

Its death fails the work in flight and nothing else: the next child gets the same adapters, and the same `EngineClient`
goes on with it.
"""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from openlora.node.children import Child, Joining, Spawned
from openlora.node.config import LogConfig
from openlora.node.engine.client import EngineClient, InferenceEngine
from openlora.node.engine.connection import Connection
from openlora.node.engine.fleet import EngineFleet
from openlora.node.engine.messages import Event
from openlora.node.frames import AsyncFrames
from openlora.node.supervise import Patience, Supervisor

ENGINE_COMMAND = (sys.executable, "-m", "openlora.node.engine.process")


@dataclass(frozen=True, slots=True)
class EngineOptions(Patience):
    """What the child serves, and how patient we are with it."""

    model: Path
    dtype: str = "auto"
    weights: str = "auto"
    limits: Mapping[str, int | bool] = field(default_factory=dict)  # fields of EngineLimits, for memory and batch sizes
    devices: tuple[str, ...] = ()  # as `openlora.node.engine.process.use_device` names them
    command: tuple[str, ...] = ENGINE_COMMAND
    log: LogConfig = field(default_factory=LogConfig)


@asynccontextmanager
async def supervised_engines(
    options: EngineOptions, state_dir: Path, *, spawn: bool = True
) -> AsyncIterator[InferenceEngine]:
    """One engine child on each of the options' devices; without any, one on all there is. Sockets are in `state_dir`:
    `engine-0.sock` is the first one's.

    Without `spawn` the children are services: each joins at its socket.
    """
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                supervised_engine(_on(options, device), state_dir, number=number, spawn=spawn)
            )
            for number, device in enumerate(options.devices or ("",))
        ]
        yield engines[0] if len(engines) == 1 else EngineFleet(engines)


def _on(options: EngineOptions, device: str = "") -> EngineOptions:
    return replace(options, command=(*options.command, "--device", device)) if device else options


@asynccontextmanager
async def supervised_engine(
    options: EngineOptions, state_dir: Path, *, number: int = 0, spawn: bool = True
) -> AsyncIterator[EngineClient]:
    """The client of an engine child that is restarted whenever it ends, until the block does.

    Raises ModelError with the engine's own sentence if the model cannot be served, ChildDied if the first child ends
    or is not ready within `start_timeout_s`.
    """
    limits = msgspec.json.encode(options.limits).decode()
    arguments = (
        "--model",
        str(options.model),
        "--dtype",
        options.dtype,
        "--weights",
        options.weights,
        "--limits",
        limits,
        "--log",
        msgspec.json.encode(options.log).decode(),
    )
    source = Spawned if spawn else Joining
    children = source((*options.command, *arguments), state_dir / f"engine-{number}.sock")
    supervisor = Supervisor("engine", children, options, _greet)
    life = await supervisor.start()
    client = EngineClient(life.link.info, options.restart_wait_s)
    async with supervisor.kept_alive(life, client):
        yield client


async def _greet(child: Child) -> Connection:
    return await Connection.greet(AsyncFrames[Event](child.reader, child.writer, Event))
