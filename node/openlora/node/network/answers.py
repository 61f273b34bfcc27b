"""The agent's answers to what peers ask on the application protocols."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from openlora.node.errors import FrameMalformed, NetworkError, OpenLoraError
from openlora.node.frames import AsyncFrames
from openlora.node.network.messages import Answer, AnswerEnd, Asked, Event
from openlora.node.network.window import MAX_REPLY_BYTES, SendWindow

log = logging.getLogger(__name__)

MAX_ASKED: Final = 64  # requests of peers under way at once; the network process refuses the next

Handler: TypeAlias = Callable[[str, bytes], AsyncIterator[bytes]]  # (peer, request) → replies of at most 64 KiB


class Answers:
    """Runs a handler for each request, in `tasks`. A handler that raises an OpenLoraError refuses with its sentence."""

    def __init__(self, frames: AsyncFrames[Event], handlers: Mapping[str, Handler], tasks: asyncio.TaskGroup) -> None:
        self._frames, self._handlers, self._tasks = frames, handlers, tasks
        self._running: dict[int, _Answering] = {}

    def start(self, asked: Asked) -> None:
        if len(self._running) >= MAX_ASKED or asked.id in self._running:
            raise FrameMalformed("the network process let through more requests than were agreed")
        gate = _Gate()
        task = self._tasks.create_task(self._answer(asked, gate), name=f"answer-{asked.id}")
        self._running[asked.id] = _Answering(task, gate)
        task.add_done_callback(lambda _: self._running.pop(asked.id, None))

    def gone(self, number: int) -> None:
        """The peer waits no longer. Its place is free at once, before the handler has ended, as the network process
        counts too."""
        if (answering := self._running.pop(number, None)) is not None:
            answering.task.cancel()

    def taken(self, number: int, count: int) -> None:
        if (answering := self._running.get(number)) is not None:
            answering.gate.taken(count)

    def cancel(self) -> None:
        for answering in self._running.values():
            answering.task.cancel()

    async def _answer(self, asked: Asked, gate: "_Gate") -> None:
        refusal = None
        try:
            await self._stream(asked, gate)
        except OpenLoraError as error:
            refusal = str(error)
        except Exception:
            log.exception("event=answer_failed protocol=%s peer=%s", asked.protocol, asked.peer)
            refusal = "the node failed to answer"
        self._frames.post(AnswerEnd(id=asked.id, refusal=refusal))

    async def _stream(self, asked: Asked, gate: "_Gate") -> None:
        handler = self._handlers.get(asked.protocol)
        if handler is None:
            raise NetworkError(f"this node does not answer {asked.protocol}")
        replies = handler(asked.peer, asked.body)
        try:
            async for data in replies:
                if len(data) > MAX_REPLY_BYTES:
                    raise ValueError(f"a reply of {len(data)} bytes; the limit is {MAX_REPLY_BYTES}")
                await gate.pass_through(data)
                await self._frames.send(Answer(id=asked.id, data=data))
        finally:
            if isinstance(replies, AsyncGenerator):
                await replies.aclose()


@dataclass(frozen=True, slots=True)
class _Answering:
    task: asyncio.Task[None]
    gate: "_Gate"


class _Gate:
    """Waits while the window is closed."""

    def __init__(self) -> None:
        self._window = SendWindow()
        self._opened = asyncio.Event()

    async def pass_through(self, data: bytes) -> None:
        while not self._window.open:
            self._opened.clear()
            await self._opened.wait()
        self._window.sent(data)

    def taken(self, count: int) -> None:
        self._window.taken(count)
        self._opened.set()
