"""The engine as the rest of the node sees it: asyncio, typed errors, and calls that outlive an engine's restart.

`EngineClient` uses the present connection, waits a bounded time for the next one, and re-loads the adapters into it.
The engine may be a child process (`openlora.node.engine.supervisor`) or a thread of this process (`in_process_engine`);
the stream is the same.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from openlora.node.engine.connection import Connection, Tokens
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterUse,
    Command,
    Event,
    ModelInfo,
    Sampling,
    Shutdown,
    Status,
)
from openlora.node.engine.process import Steps, run_loop
from openlora.node.errors import AdapterError, EngineDied
from openlora.node.frames import AsyncFrames, BlockingFrames
from openlora.node.supervise import Current
from openlora.node.tasks import running

log = logging.getLogger(__name__)


class EngineClient:
    """Generates, and manages adapters, on whichever engine is alive.

    While there is none, every call waits up to `restart_wait_s` for the next one and then raises EngineDied. Whoever
    owns the engine calls `attach` and `detach`.
    """

    def __init__(self, info: ModelInfo, restart_wait_s: float = 30.0) -> None:
        self.info = info
        self._current: Current[Connection] = Current(restart_wait_s, _restarting)
        self._adapters: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        return self._current.alive

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapters: Sequence[AdapterUse] = (), tenant: str = ""
    ) -> AsyncGenerator[Tokens, None]:
        """The tokens of one request as they come, which may be several at once; the last one has a `finish_reason`.
        `tenant` is whose it is, as in `Submit`.

        Closing or cancelling the generator cancels the request in the engine. Raises RequestError, Overloaded, and
        EngineDied when the engine ends meanwhile: the request is not repeated, since it may be what killed it.
        """
        connection = await self._current.get()
        answer = connection.generate(prompt, sampling, adapters, tenant)
        try:
            async for tokens in answer:
                yield tokens
        finally:
            await answer.aclose()

    async def load_adapter(self, key: str, path: str) -> AdapterLoaded:
        """Make the adapter directory at `path` servable as `key`, now and after a restart. Raises AdapterError."""
        loaded = await (await self._current.get()).load_adapter(key, path)
        self._adapters[key] = path
        return loaded

    async def unload_adapter(self, key: str) -> None:
        """Forget `key`; an unknown one is no error."""
        self._adapters.pop(key, None)
        await (await self._current.get()).unload_adapter(key)

    async def status(self) -> Status:
        return await (await self._current.get()).status()

    async def attach(self, link: Connection) -> None:
        """Use `link`, which is being read, once it has the adapters; one that it now refuses is dropped."""
        for key, path in tuple(self._adapters.items()):
            try:
                await link.load_adapter(key, path)
            except AdapterError as error:
                self._adapters.pop(key, None)
                log.error("event=adapter_lost key=%s reason=%r", key, str(error))
        self._current.set(link)

    def detach(self) -> None:
        self._current.clear()


class InferenceEngine(Protocol):
    """What EngineClient promises, of one engine or of several."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def alive(self) -> bool: ...

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapters: Sequence[AdapterUse] = (), tenant: str = ""
    ) -> AsyncGenerator[Tokens, None]: ...

    async def load_adapter(self, key: str, path: str) -> AdapterLoaded: ...

    async def unload_adapter(self, key: str) -> None: ...

    async def status(self) -> Status: ...


def _restarting() -> EngineDied:
    return EngineDied("the inference engine is restarting; try again later")


@asynccontextmanager
async def in_process_engine(engine: Steps) -> AsyncIterator[EngineClient]:
    """The engine's loop in a thread of this process, behind the same stream and client as a child's."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            run_loop(engine, BlockingFrames[Command](theirs, Command))

    thread = threading.Thread(target=serve, name="engine")
    thread.start()
    frames = AsyncFrames[Event](*await asyncio.open_unix_connection(sock=ours), Event)
    try:
        connection = await Connection.greet(frames)
        client = EngineClient(connection.info)
        async with running(connection.read(), "engine-reader"):
            await client.attach(connection)
            yield client
    finally:
        frames.post(Shutdown())
        frames.close()
        await asyncio.to_thread(thread.join)
