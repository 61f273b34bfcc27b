"""Server-sent events that end with their reader."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openlora.node.api.errors import ClientGone, describe
from openlora.node.errors import OpenLoraError
from openlora.node.tasks import running

log = logging.getLogger(__name__)

SendEvent = Callable[[object], Awaitable[None]]


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
    """Sends each event of `produce` as `data: <JSON>`, and `data: [DONE]` at the end.

    `produce` is cancelled when the client disconnects, or takes nothing for `send_timeout_s`. What it raises before its
    first event becomes an ordinary HTTP error; later, a last event {"error": …} without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(self, produce: Callable[[SendEvent], Awaitable[None]], send_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._produce, self._send_timeout_s = produce, send_timeout_s
        self._started = False
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_event(event: object) -> None:
            await self._write(send, b"data: " + msgspec.json.encode(event) + b"\n\n")

        try:
            async with while_connected(receive):
                try:
                    await self._produce(send_event)
                except OpenLoraError as error:
                    if not self._started:
                        raise
                    await send_event(describe(error)[1])
                else:
                    await self._write(send, b"data: [DONE]\n\n")
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("event=reader_dropped silent_s=%g", self._send_timeout_s)
        except ClientGone:
            log.debug("event=client_gone")

    async def _write(self, send: Send, data: bytes) -> None:
        async with self._turn:
            if not self._started:
                self._started = True
                await self._send(
                    send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
            await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})

    async def _send(self, send: Send, message: dict[str, object]) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await send(message)
