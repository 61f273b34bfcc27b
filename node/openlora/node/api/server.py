"""uvicorn with our limits and our signals."""

import asyncio
import errno
import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from openlora.node.api.limits import Limits
from openlora.node.errors import ConfigError

_GRACEFUL_SHUTDOWN_S = 10
_MAX_WEBSOCKET_MESSAGE_BYTES = 4096  # of a client's: nothing that they say is read


def bind(host: str, port: int, limits: Limits, setting: str = "--port") -> socket.socket:
    """Claim the address before anything slow happens. Raises ConfigError, which names the `setting` to change."""
    family, address = _resolve(host, port)
    # The protocol is named because asyncio sends small writes at once (TCP_NODELAY) on sockets that name it alone:
    # a body that follows its headers would else wait 40 ms for the reader's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by every connection: the kernel drops a reader that takes none of what is buffered for it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.send_timeout_s * 1000))
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use; choose another with {setting}") from None
        raise ConfigError(f"{host}:{port} cannot be bound: {error.strerror}; choose another with {setting}") from None
    return sock


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach `host`. Raises ConfigError for a name that does not resolve."""
    _, address = _resolve(host, 0)
    return ipaddress.ip_address(address[0]).is_loopback


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        raise ConfigError(
            f"{host}:{port} is no address to listen on; give --host a name or address of this machine"
        ) from None
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


class Server:
    """Serves one app on one socket until stopped or signalled: streams get 10 s to end, on a second SIGINT none."""

    def __init__(self) -> None:
        self._uvicorn: uvicorn.Server | None = None
        self._main: asyncio.Task[object] | None = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """From here on a signal ends things in order, also while models load: the block is cancelled."""
        loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def serve(self, app: FastAPI, sock: socket.socket, limits: Limits) -> None:
        config = uvicorn.Config(
            app,
            http=_connection(limits.head_timeout_s),
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=_MAX_WEBSOCKET_MESSAGE_BYTES,
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.max_connections,
            timeout_keep_alive=limits.keep_alive_s,
            h11_max_incomplete_event_size=limits.max_header_bytes,
            timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_S,
        )
        self._uvicorn = _QuietServer(config)
        await self._uvicorn.serve(sockets=[sock])

    def stop(self) -> None:
        """Like the first signal: accept nothing new, let streams end."""
        self._on_signal(signal.SIGTERM)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._uvicorn is not None:
            self._uvicorn.handle_exit(number, None)
        elif self._main is not None:
            self._main.cancel()


def _connection(head_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with an end to heads that do not arrive: its own timer stops at a request's first byte."""

    class Connection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            self._head_timer = self.loop.call_later(head_timeout_s, self.timeout_keep_alive_handler)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(head_timeout_s, self.timeout_keep_alive_handler)

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return Connection


class _QuietServer(uvicorn.Server):
    """Leaves signals to `Server`: uvicorn would raise them again before the engine is stopped."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
