"""Children's lives: started, kept alive, stopped, and never left behind."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from openlora.node.children import Child, Children
from openlora.node.errors import ChildDied, OpenLoraError
from openlora.node.tasks import running

log = logging.getLogger(__name__)


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
    children: Children
    patience: Patience
    greet: Callable[[Child], Awaitable[LinkT]]

    async def start(self) -> Life[LinkT]:
        """Raises ChildDied if the child ends or is not ready in time, and what `greet` raises."""
        child = await self.children.next(self.patience.start_timeout_s)
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
            log.error("event=%s_ended how=%r life_s=%.1f", self.name, life.child.ending, life_s)
            life = await self._restart(backoff, life_s)
            log.info("event=%s_restarted pid=%d", self.name, life.child.pid)

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
