"""Child processes and the stream that each opens to us, whoever starts them.

    Spawned   we start one, and tell it the path of a Unix socket, to which it connects
    Joining   another hand starts one, a service manager's: it connects to a socket that exists while we wait for one,
              and is told there which child to be (see `openlora.node.joining`)

From then on it speaks frames. It ends when we say so, when that socket closes, or, should it be too busy to notice,
when the kernel sees that our process is gone.
"""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from openlora.node.errors import ChildDied, ConfigError
from openlora.node.frames import pack

_STDERR: Final = 2
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path in linux/un.h, less the final zero
_PEER_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid; unix(7), SO_PEERCRED

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Become(msgspec.Struct, frozen=True):
    """The first frame to a process that joined: the command line that it replaces itself with."""

    command: tuple[str, ...]


def die_with_parent() -> None:
    """Called first by a child's main: on Linux, SIGKILL for this process when its parent's thread ends.

    A parent that died before this call has closed the socket that the child connects to next, and the child ends there.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


@dataclass(frozen=True, slots=True)
class Child:
    """A child process and the stream that it opened to us."""

    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: asyncio.subprocess.Process | None = None  # None: another hand started it, and restarts it

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return ending(self.process) if self.process is not None else "closed its connection"

    async def stop(self, grace_s: float) -> None:
        """Wait `grace_s` for a child that was asked to end, then SIGTERM, then SIGKILL. It has ended when this returns,
        and is at least killed when this is cancelled. One that joined loses its connection, and ends for that."""
        self.writer.close()
        try:
            if self.process is not None:
                await stop(self.process, grace_s)
            else:
                with suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(grace_s):
                        await self.writer.wait_closed()  # what we said last is out
        finally:
            self.writer.transport.abort()


class Children(Protocol):
    """Where the next life of a child comes from."""

    async def next(self, timeout_s: float) -> Child:
        """One that has connected. Raises ChildDied if none has after `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True)
class Spawned:
    """Children of our own."""

    command: Sequence[str]
    socket_path: Path

    async def next(self, timeout_s: float) -> Child:
        """As `spawn`."""
        return await spawn(self.command, self.socket_path, timeout_s)


@dataclass(frozen=True, slots=True)
class Joining:
    """Children of another hand. Whoever may write to `socket_path`, which its folder says, is told to be `command`.

    The socket exists only while a child is wanted, so no second one can come.
    """

    command: Sequence[str]
    socket_path: Path

    async def next(self, timeout_s: float) -> Child:
        """Raises ChildDied if none comes within `timeout_s`, ConfigError where its folder is missing."""
        if not self.socket_path.parent.is_dir():
            raise ConfigError(f"{self.socket_path.parent} does not exist; `openlora service install` makes it")
        connected: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        async with _first_connection(self.socket_path, 0o660, connected):
            try:
                async with asyncio.timeout(timeout_s):
                    reader, writer = await connected
            except TimeoutError:
                wanted = f"no service of this node has come to {self.socket_path} within {timeout_s:g} s"
                raise ChildDied(f"{wanted}; `systemctl status 'openlora-*'` says why") from None
        writer.write(pack(Become(tuple(self.command))))
        credentials = writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
        )
        return Child(_PEER_CREDENTIALS.unpack(credentials)[0], reader, writer)


async def spawn(command: Sequence[str], socket_path: Path, timeout_s: float) -> Child:
    """Start `command --socket socket_path` and wait until it has connected.

    The child's stdout goes to our stderr, and signals of our terminal do not reach it: we end it, not Ctrl-C.
    Raises ChildDied if it ends or is silent for `timeout_s` instead, ConfigError for a path that no socket can have.
    """
    connected: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with _first_connection(socket_path, 0o600, connected):
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
    return Child(process.pid, reader, writer, process)


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
    connected: asyncio.Future[Stream],
    timeout_s: float,
) -> Stream:
    ended = asyncio.ensure_future(process.wait())
    either: tuple[asyncio.Future[Any], ...] = (ended, connected)
    try:
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if connected.done():
        return connected.result()
    if process.returncode is not None:
        raise ChildDied(f"the child process {ending(process)} before it connected; its log says why")
    raise ChildDied(f"the child process did not connect within {timeout_s:g} s")


@asynccontextmanager
async def _first_connection(path: Path, mode: int, connected: asyncio.Future[Stream]) -> AsyncIterator[None]:
    """While the block runs the first to connect to `path` fulfils `connected`; any other is turned away."""

    def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connected.done():
            writer.close()
        else:
            connected.set_result((reader, writer))

    with _bound(path, mode) as sock:
        async with await asyncio.start_unix_server(on_connect, sock=sock):
            try:
                yield
            except BaseException:  # among them a cancellation that came with the connection, or before it
                if not connected.cancel() and not connected.cancelled():
                    connected.result()[1].transport.abort()
                raise


@contextmanager
def _bound(path: Path, mode: int) -> Iterator[socket.socket]:
    """A socket with these permissions; its name is gone once the child has come."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{path} is too long for a Unix socket; choose a shorter state directory")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        try:
            path.chmod(mode)
            yield sock
        finally:
            path.unlink(missing_ok=True)
