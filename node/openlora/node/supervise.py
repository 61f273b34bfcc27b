"""Children's lives: started, connected, kept alive, stopped, and never left behind.

A child is given the path of a Unix socket and connects to it; from then on it speaks frames. It ends when we say so,
when that socket closes, or, should it be too busy to notice, when the kernel sees that our process is gone.
"""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from openlora.node.errors import ChildDied, ConfigError, OpenLoraError
from openlora.node.tasks import running

log = logging.getLogger(__name__)

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
    Raises ChildDied if it ends or is silent for `timeout_s` instead, ConfigError for a path that no socket can have.
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
        raise ChildDied(f"the child process {ending(process)} before it connected; its log says why")
    raise ChildDied(f"the child process did not connect within {timeout_s:g} s")


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


class Link(Protocol):
    """Our end of one life of a child, hands shaken."""

    @property
    def ended(self) -> bool:
        """Whether that life is over: nothing is answered any more."""
        ...

    async def read(self) -> None:
        """Delivers what the child says; returns when it has ended."""
        ...

    async def probe(self) -> None:
        """Returns once the child has answered. Raises ChildDied if it has ended."""
        ...

    def shut_down(self) -> None:
        """Asks the child to end."""
        ...


LinkT = TypeVar("LinkT", bound=Link)
HeldT = TypeVar("HeldT", bound=Link, contravariant=True)


class Holder(Protocol[HeldT]):
    """Who uses whichever link is alive: the client that the rest of the node holds."""

    async def attach(self, link: HeldT) -> None:
        """Use `link`, which is being read. Raises ChildDied if it ends meanwhile."""
        ...

    def detach(self) -> None: ...


class Current(Generic[LinkT]):
    """The link in use, which changes with every life of the child: what each `Holder` keeps its links in."""

    def __init__(self, wait_s: float, absent: Callable[[], ChildDied]) -> None:
        """`wait_s`: how long `get` waits while there is none, before it raises what `absent` makes."""
        self._wait_s, self._absent = wait_s, absent
        self._link: LinkT | None = None
        self._present = asyncio.Event()

    @property
    def link(self) -> LinkT | None:
        """It may have ended a moment ago."""
        return self._link

    @property
    def alive(self) -> bool:
        return self._link is not None and not self._link.ended

    def set(self, link: LinkT) -> None:
        self._link = link
        self._present.set()

    def clear(self) -> None:
        self._link = None
        self._present.clear()

    async def get(self) -> LinkT:
        """One that has not ended, as far as is known."""
        try:
            async with asyncio.timeout(self._wait_s):
                while (link := self._link) is None or link.ended:
                    self.clear()
                    await self._present.wait()
        except TimeoutError:
            raise self._absent() from None
        return link


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long we wait for a child, and for what."""

    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    hang_timeout_s: float = 300.0  # without an answer to a probe; then it is killed
    probe_interval_s: float = 15.0
    restart_first_s: float = 0.5
    restart_max_s: float = 30.0
    restart_wait_s: float = 30.0  # how long a call waits for the next child before it fails


@dataclass(frozen=True, slots=True)
class Life(Generic[LinkT]):
    """A child that is ready."""

    child: Child
    link: LinkT

    async def stop(self, grace_s: float) -> None:
        self.link.shut_down()
        await self.child.stop(grace_s)


@dataclass(frozen=True, slots=True)
class Supervisor(Generic[LinkT]):
    """Keeps a child alive: whenever one ends, or answers nothing for `hang_timeout_s`, the next is started.

    A child that never answers again looks the same as one that takes long; hence the patience. `greet` makes the link
    of a child that has connected, once it is ready.
    """

    name: str  # in logs and errors: "engine"
    command: Sequence[str]
    socket_path: Path
    patience: Patience
    greet: Callable[[Child], Awaitable[LinkT]]

    async def start(self) -> Life[LinkT]:
        """Raises ChildDied if the child ends or is not ready in time, and what `greet` raises."""
        child = await spawn(self.command, self.socket_path, self.patience.start_timeout_s)
        try:
            async with asyncio.timeout(self.patience.start_timeout_s):
                link = await self.greet(child)
        except TimeoutError:
            await child.stop(0)
            raise ChildDied(f"the {self.name} was not ready after {self.patience.start_timeout_s:g} s") from None
        except BaseException:
            await child.stop(1.0)
            raise
        return Life(child, link)

    @asynccontextmanager
    async def kept_alive(self, life: Life[LinkT], holder: Holder[LinkT]) -> AsyncIterator[None]:
        """While the block runs `holder` is attached to a living child, `life` or a later one; then none is left."""
        try:
            async with running(self._keep_alive(life, holder), f"{self.name}-supervisor"):
                yield
        finally:  # also where the block ended before that task began
            await life.stop(self.patience.stop_timeout_s)

    async def _keep_alive(self, life: Life[LinkT], holder: Holder[LinkT]) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self.patience.restart_first_s, self.patience.restart_max_s)
        while True:
            started_s = loop.time()
            try:
                await self._serve(life.link, holder)
            finally:
                holder.detach()
                await life.stop(self.patience.stop_timeout_s)
            life_s = loop.time() - started_s
            log.error("event=%s_ended how=%r life_s=%.1f", self.name, ending(life.child.process), life_s)
            life = await self._restart(backoff, life_s)
            log.info("event=%s_restarted pid=%d", self.name, life.child.process.pid)

    async def _serve(self, link: LinkT, holder: Holder[LinkT]) -> None:
        """Returns when the child has ended, or hangs."""
        async with running(link.read(), f"{self.name}-reader") as reader:
            try:
                await holder.attach(link)
                while not reader.done():
                    await asyncio.wait({reader}, timeout=self.patience.probe_interval_s)
                    async with asyncio.timeout(self.patience.hang_timeout_s):
                        await link.probe()
            except ChildDied:
                return
            except TimeoutError:
                log.error("event=%s_hangs timeout_s=%g", self.name, self.patience.hang_timeout_s)

    async def _restart(self, backoff: Backoff, life_s: float) -> Life[LinkT]:
        while True:
            await asyncio.sleep(backoff.after(life_s))
            try:
                return await self.start()
            except OpenLoraError as error:
                log.error("event=%s_restart_failed reason=%r", self.name, str(error))
                life_s = 0.0
