"""Server-sent events that end with their reader."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openlora.node.api.errors import ClientGone, describe
from openlora.node.errors import OpenLoraError
from openlora.node.tasks import running

log = logging.getLogger(__name__)


class SendEvents(Protocol):
    """Sends some events at once."""

    def __call__(self, *events: object) -> Awaitable[None]: ...


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client closes its connection, and raises ClientGone."""
    async with running(_until_disconnect(receive), "disconnect-watcher"):
        yield


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class EventStream(Response):
    """Sends what `produce` gives to its argument as `data: <JSON>` each, then the events that it returns, and
    `data: [DONE]` at the end.

    `produce` is cancelled when the client disconnects, or takes nothing for `send_timeout_s`. What it raises before its
    first event becomes an ordinary HTTP error; later, a last event {"error": …} without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(self, produce: Callable[[SendEvents], Awaitable[Iterable[object]]], send_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._produce, self._send_timeout_s = produce, send_timeout_s
        self._started = False
        self._turn = asyncio.Lock()
        self._sending_since_s: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_events(*events: object) -> None:
            await self._write(send, _framed(events))

        try:
            async with running(self._until_stuck(), "reader-watcher"):
                async with while_connected(receive):
                    try:
                        end = _framed(await self._produce(send_events)) + b"data: [DONE]\n\n"
                    except OpenLoraError as error:
                        if not self._started:
                            raise
                        end = _framed([describe(error)[1]])
                await self._write(send, end, last=True)
        except TimeoutError:
            log.warning("event=reader_dropped silent_s=%g", self._send_timeout_s)
        except ClientGone:
            log.debug("event=client_gone")

    async def _write(self, send: Send, data: bytes, *, last: bool = False) -> None:
        async with self._turn:
            self._sending_since_s = asyncio.get_running_loop().time()
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": not last})
            self._sending_since_s = None

    async def _until_stuck(self) -> None:
        """One timer for all of a stream's sends, which rarely wait: a timeout around each would cost more than they."""
        loop = asyncio.get_running_loop()
        while True:
            since_s = loop.time() if self._sending_since_s is None else self._sending_since_s
            if (left_s := since_s + self._send_timeout_s - loop.time()) <= 0:
                raise TimeoutError
            await asyncio.sleep(left_s)


def _framed(events: Iterable[object]) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
