"""Children's lives: started, connected, stopped, and never left behind.

A child is given the path of a Unix socket and connects to it; from then on it speaks frames. It ends when we say so,
when that socket closes, or, should it be too busy to notice, when the kernel sees that our process is gone.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openlora.node.errors import ConfigError, EngineDied

_STDERR = 2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MAX_SOCKET_PATH_BYTES = 107  # sun_path in linux/un.h, less the final zero


def die_with_parent() -> None:
    """Called first by a child's main: on Linux, SIGKILL for this process when its parent's thread ends.

    A parent that died before this call has closed the socket that the child connects to next, and the child ends there.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


@dataclass(slots=True)
class Backoff:
    """Waits that double from `first_s` to `max_s`, and begin anew after a life of at least `healthy_s`."""

    first_s: float = 0.5
    max_s: float = 30.0
    healthy_s: float = 60.0
    _next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._next_s = self.first_s

    def after(self, life_s: float) -> float:
        """How long to wait before the next start, given how long the last life was."""
        if life_s >= self.healthy_s:
            self._next_s = self.first_s
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self.max_s)
        return wait_s


@dataclass(frozen=True, slots=True)
class Child:
    """A child process and the stream that it opened to us."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def stop(self, grace_s: float) -> None:
        """Wait `grace_s` for a child that was asked to end, then SIGTERM, then SIGKILL. It has ended when this returns,
        and is at least killed when this is cancelled."""
        self.writer.close()
        try:
            await stop(self.process, grace_s)
        finally:
            self.writer.transport.abort()


async def spawn(command: Sequence[str], socket_path: Path, timeout_s: float) -> Child:
    """Start `command --socket socket_path` and wait until it has connected.

    The child's stdout goes to our stderr, and signals of our terminal do not reach it: we end it, not Ctrl-C.
    Raises EngineDied if it ends or is silent for `timeout_s` instead, ConfigError for a path that no socket can have.
    """
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    connected = asyncio.get_running_loop().create_future()

    def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connected.done():
            writer.close()
        else:
            connected.set_result((reader, writer))

    with _bound(socket_path) as sock:
        async with await asyncio.start_unix_server(on_connect, sock=sock):
            process = await asyncio.create_subprocess_exec(
                *command,
                "--socket",
                str(socket_path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=_STDERR,
                start_new_session=True,
            )
            try:
                reader, writer = await _unless_ended(process, connected, timeout_s)
            except BaseException:
                await stop(process, grace_s=0)
                raise
    return Child(process, reader, writer)


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Wait `grace_s`, then SIGTERM, then SIGKILL; cancelled, SIGKILL at once."""
    try:
        if await _ended_within(process, grace_s):
            return
        process.terminate()
        await _ended_within(process, max(grace_s, 1.0))
    finally:
        if process.returncode is None:
            process.kill()
    await process.wait()


def ending(process: asyncio.subprocess.Process) -> str:
    """How a process ended, in words."""
    code = process.returncode
    if code is None:
        return "closed its connection"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


async def _ended_within(process: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def _unless_ended(
    process: asyncio.subprocess.Process,
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
    timeout_s: float,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    ended = asyncio.ensure_future(process.wait())
    either: tuple[asyncio.Future[Any], ...] = (ended, connected)
    try:
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if connected.done():
        return connected.result()
    if process.returncode is not None:
        raise EngineDied(f"the child process {ending(process)} before it connected; its log says why")
    raise EngineDied(f"the child process did not connect within {timeout_s:g} s")


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that only this user can connect to; its name is gone once the child has."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{path} is too long for a Unix socket; choose a shorter state directory")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        try:
            path.chmod(0o600)
            yield sock
        finally:
            path.unlink(missing_ok=True)
