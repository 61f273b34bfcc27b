"""/v1/events: the feed over a WebSocket. What a listener sends is not read; who may listen is the guard's to say."""

import asyncio
from contextlib import suppress
from typing import Final

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from openlora.node.errors import Overloaded
from openlora.node.telemetry.feed import Feed, Listener

TOO_SLOW: Final = 4008  # close codes; those from 4000 on are an application's own
TOO_MANY: Final = 4029
CLOSE_TIMEOUT_S: Final = 5.0  # for the close to get through to one that reads nothing


def create_events_router(feed: Feed) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        try:
            with feed.listener() as listener:
                code = await _serve(socket, listener)
        except Overloaded:
            code = TOO_MANY
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):  # it is gone, or takes nothing
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await socket.close(code)

    return router


async def _serve(socket: WebSocket, listener: Listener) -> int:
    """Sends until the listener leaves or is dropped; returns the code to close with."""
    sending = asyncio.create_task(_send(socket, listener), name="events-send")
    leaving = asyncio.create_task(_until_gone(socket), name="events-receive")
    dropped = asyncio.create_task(listener.dropped.wait(), name="events-dropped")
    tasks = (sending, leaving, dropped)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return TOO_SLOW if listener.dropped.is_set() else 1000
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(socket: WebSocket, listener: Listener) -> None:
    while True:
        await socket.send_text((await listener.messages.get()).decode())


async def _until_gone(socket: WebSocket) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()
