"""One life of the network process, seen from the agent: events find those who wait for them.

When the process ends, everyone still waiting fails with NetworkDown and every request of a peer that was being answered
is dropped.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, Self, TypeAlias

from openlora.node.errors import (
    ContentError,
    ContentNotFound,
    FrameError,
    FrameMalformed,
    NetworkDown,
    NetworkError,
    OpenLoraError,
    PeerRefused,
)
from openlora.node.frames import AsyncFrames
from openlora.node.network.answers import Answers, Handler
from openlora.node.network.messages import (
    VERSION,
    Ask,
    Asked,
    AskGone,
    Cancel,
    Command,
    Connect,
    Connected,
    ConnectFailed,
    Event,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    GetStats,
    Gone,
    Ready,
    Reply,
    ReplyEnd,
    Seen,
    Shutdown,
    Stats,
    Taken,
)
from openlora.node.network.nodes import NodeTable
from openlora.node.network.window import TakeWindow
from openlora.node.tasks import task_group

log = logging.getLogger(__name__)

_ENDED: Final = "the network process ended while this was in flight; try it again"

Result: TypeAlias = Fetched | Connected | Stats


class Connection:
    """`read` must run for the others to be answered. `nodes` is kept up to date; `handlers` answer peers' requests."""

    def __init__(
        self, frames: AsyncFrames[Event], ready: Ready, nodes: NodeTable, handlers: Mapping[str, Handler]
    ) -> None:
        self.ready = ready
        self._frames, self._nodes, self._handlers = frames, nodes, handlers
        self._numbers = itertools.count(1)
        self._results: dict[int, asyncio.Future[Result]] = {}
        self._asks: dict[int, _Replies] = {}
        self._ended: str | None = None

    @classmethod
    async def greet(cls, frames: AsyncFrames[Event], nodes: NodeTable, handlers: Mapping[str, Handler]) -> Self:
        """Waits until the process listens. Raises NetworkError with its own sentence, NetworkDown, FrameError."""
        match await frames.receive():
            case Ready(version=version) as ready if version == VERSION:
                return cls(frames, ready, nodes, handlers)
            case Ready(version=version):
                raise NetworkDown(f"the network process speaks version {version}, this node version {VERSION}")
            case Failed(message=message):
                raise NetworkError(message)
            case None:
                raise NetworkDown("the network process ended before it was ready; its log says why")
            case event:
                raise FrameMalformed(f"the network process began with {type(event).__name__} instead of Ready")

    @property
    def ended(self) -> bool:
        return self._ended is not None

    async def read(self) -> None:
        """Delivers events until the process ends; then everything that waits fails with NetworkDown."""
        reason = _ENDED
        try:
            async with task_group() as tasks:
                answers = Answers(self._frames, self._handlers, tasks)
                while (event := await self._frames.receive()) is not None:
                    self._deliver(event, answers)
                answers.cancel()
        except FrameError as error:
            reason = f"the network process broke the framing: {error}"
            log.error("event=network_stream_broken reason=%r", str(error))
        finally:
            self._end(reason)

    async def probe(self) -> None:
        await self.stats()

    def shut_down(self) -> None:
        self._frames.post(Shutdown())

    def post(self, command: Command) -> None:
        """Queues what is not answered."""
        self._frames.post(command)

    async def tell(self, command: Command) -> None:
        """Sends what is not answered; returns when the process keeps up, or has ended."""
        await self._frames.send(command)

    async def fetch(self, cid: str, *, max_bytes: int, whole: bool, hints: Sequence[str]) -> Fetched:
        fetch = Fetch(id=next(self._numbers), cid=cid, max_bytes=max_bytes, whole=whole, hints=tuple(hints))
        result = await self._call(fetch)
        assert isinstance(result, Fetched)
        return result

    async def connect(self, addresses: Sequence[str]) -> str:
        result = await self._call(Connect(id=next(self._numbers), addresses=tuple(addresses)))
        assert isinstance(result, Connected)
        return result.peer

    async def stats(self) -> Stats:
        result = await self._call(GetStats(id=next(self._numbers)))
        assert isinstance(result, Stats)
        return result

    async def ask(
        self, peer: str, addresses: Sequence[str], protocol: str, body: bytes, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        number = next(self._numbers)
        self._asks[number] = replies = _Replies()
        try:
            await self._send(
                Ask(
                    id=number,
                    peer=peer,
                    addresses=tuple(addresses),
                    protocol=protocol,
                    body=body,
                    timeout_s=timeout_s,
                )
            )
            while (reply := await replies.next()) is not None:
                data, taken = reply
                if taken:
                    self._frames.post(Taken(id=number, bytes=taken))
                yield data
        finally:
            if self._asks.pop(number, None) is not None:
                self._frames.post(Cancel(id=number))

    async def _send(self, command: Command) -> None:
        if self._ended is not None:
            raise NetworkDown(self._ended)
        await self._frames.send(command)

    async def _call(self, command: Fetch | Connect | GetStats) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[command.id] = future
        try:
            await self._send(command)
            return await future
        finally:
            if self._results.pop(command.id, None) is not None and not isinstance(command, GetStats):
                self._frames.post(Cancel(id=command.id))

    # ---- events -----------------------------------------------------------------------------------------------------

    def _deliver(self, event: Event, answers: Answers) -> None:
        match event:
            case Fetched() | Connected() | Stats():
                self._settle(event.id, event)
            case FetchFailed(id=number, code=code, message=message):
                self._settle(number, ContentNotFound(message) if code == "missing" else ContentError(message))
            case ConnectFailed(id=number, message=message):
                self._settle(number, NetworkError(message))
            case Reply(id=number, data=data):
                if (replies := self._asks.get(number)) is not None:  # else cancelled, and this was on its way
                    replies.put(data)
            case ReplyEnd(id=number):
                if (replies := self._asks.pop(number, None)) is not None:
                    replies.end(_error(event))
            case Asked():
                answers.start(event)
            case AskGone(id=number):
                answers.gone(number)
            case Taken(id=number, bytes=count):
                answers.taken(number, count)
            case Seen(record=record):
                self._nodes.seen(record)
            case Gone(operator=operator):
                self._nodes.gone(operator)
            case Ready() | Failed():
                raise FrameMalformed(f"the network process sent {type(event).__name__} in the middle of its work")

    def _settle(self, number: int, result: Result | OpenLoraError) -> None:
        future = self._results.pop(number, None)
        if future is None or future.done():  # the caller gave up while the answer was on its way
            return
        if isinstance(result, OpenLoraError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _end(self, reason: str) -> None:
        self._ended = reason
        for future in self._results.values():
            if not future.done():
                future.set_exception(NetworkDown(reason))
        for replies in self._asks.values():
            replies.end(NetworkDown(reason))
        self._results.clear()
        self._asks.clear()


class _Replies:
    """What a peer has replied and the asker has not taken yet."""

    def __init__(self) -> None:
        self._window = TakeWindow()
        self._waiting: deque[bytes] = deque()
        self._end: OpenLoraError | None = None
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        if not self._window.came(data):
            raise FrameMalformed("the network process sent more of a reply than was agreed")
        self._waiting.append(data)
        self._changed.set()

    def end(self, error: OpenLoraError | None) -> None:
        self._ended, self._end = True, error
        self._changed.set()

    async def next(self) -> tuple[bytes, int] | None:
        """The next reply, and how many bytes to say `Taken` for; None after the last. Raises how it failed."""
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._waiting:
            data = self._waiting.popleft()
            return data, self._window.took(data)
        if self._end is not None:
            raise self._end
        return None


def _error(end: ReplyEnd) -> NetworkError | None:
    match end.outcome:
        case "done":
            return None
        case "refused":
            return PeerRefused(end.message)
        case "failed":
            return NetworkError(end.message)
