"""One life of an engine as the rest of the node sees it: commands, and events for those who wait for them."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Self, TypeAlias

from openlora.node.engine.messages import (
    VERSION,
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    AdapterUse,
    Cancel,
    Command,
    Event,
    Failed,
    GetStatus,
    LoadAdapter,
    ModelInfo,
    Ready,
    Refused,
    Sampling,
    Shutdown,
    Status,
    Step,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.errors import (
    AdapterError,
    EngineDied,
    FrameError,
    FrameMalformed,
    ModelError,
    OpenLoraError,
    Overloaded,
    RequestError,
)
from openlora.node.frames import AsyncFrames

log = logging.getLogger(__name__)

Reply: TypeAlias = AdapterLoaded | AdapterUnloaded | Status
ReplyKey: TypeAlias = tuple[type[Reply], str]
Tokens: TypeAlias = Sequence[Token]  # what had come of a request when its caller looked: in order, at least one


class _Answer:
    """What has come of a request and was not taken yet: all its output if need be, so the reader of events never waits
    for a slow consumer and nobody stalls another."""

    def __init__(self, max_tokens: int) -> None:
        self._room = max_tokens
        self._tokens: list[Token] = []
        self._error: OpenLoraError | None = None
        self._came = asyncio.Event()

    def put(self, token: Token) -> None:
        """Raises FrameMalformed for more tokens than were asked for."""
        if self._room == 0:
            raise FrameMalformed("the engine sent more tokens than were asked for")
        self._room -= 1
        self._tokens.append(token)
        self._came.set()

    def fail(self, error: OpenLoraError) -> None:
        self._error = error
        self._came.set()

    async def take(self) -> Tokens:
        """Raises what the request failed with, once all its tokens are taken."""
        await self._came.wait()
        if not self._tokens and self._error is not None:
            raise self._error
        if self._error is None:
            self._came.clear()
        tokens, self._tokens = self._tokens, []
        return tokens


class Connection:
    """`read` must run for the others to be answered. When the engine ends, everyone who still waits fails with
    EngineDied."""

    def __init__(self, frames: AsyncFrames[Event], info: ModelInfo) -> None:
        self.info = info
        self._frames = frames
        self._requests: dict[str, _Answer] = {}
        self._replies: dict[ReplyKey, deque[asyncio.Future[Reply]]] = {}
        self._numbers = itertools.count(1)
        self._ended: str | None = None

    @classmethod
    async def greet(cls, frames: AsyncFrames[Event]) -> Self:
        """Waits until the engine is ready. Raises ModelError with the engine's own sentence, EngineDied, FrameError."""
        match await frames.receive():
            case Ready(version=version, model=model) if version == VERSION:
                return cls(frames, model)
            case Ready(version=version):
                raise EngineDied(f"the engine speaks version {version} of the messages, this node version {VERSION}")
            case Failed(message=message):
                raise ModelError(message)
            case None:
                raise EngineDied("the engine ended before it had loaded the model; its log says why")
            case event:
                raise FrameMalformed(f"the engine began with {type(event).__name__} instead of Ready")

    @property
    def ended(self) -> bool:
        return self._ended is not None

    async def read(self) -> None:
        """Deliver events until the engine ends; then everything that waits fails with EngineDied."""
        reason = "the inference engine ended while this was in flight; submit it again"
        try:
            while (event := await self._frames.receive()) is not None:
                self._deliver(event)
        except FrameError as error:
            reason = f"the inference engine broke the framing: {error}"
            log.error("event=engine_stream_broken reason=%r", str(error))
        finally:
            self._end(reason)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapters: Sequence[AdapterUse], tenant: str
    ) -> AsyncGenerator[Tokens, None]:
        request_id = str(next(self._numbers))
        self._requests[request_id] = answer = _Answer(sampling.max_tokens)
        try:
            await self._send(
                Submit(
                    request_id=request_id,
                    prompt=tuple(prompt),
                    sampling=sampling,
                    adapters=tuple(adapters),
                    tenant=tenant,
                )
            )
            ended = False
            while not ended:
                tokens = await answer.take()
                ended = tokens[-1].finish_reason is not None
                if ended:
                    self._requests.pop(request_id, None)
                yield tokens
        finally:
            if self._requests.pop(request_id, None) is not None:
                self._frames.post(Cancel(request_id=request_id))

    async def load_adapter(self, key: str, path: str) -> AdapterLoaded:
        reply = await self._call(LoadAdapter(key=key, path=path), (AdapterLoaded, key))
        assert isinstance(reply, AdapterLoaded)
        return reply

    async def unload_adapter(self, key: str) -> None:
        await self._call(UnloadAdapter(key=key), (AdapterUnloaded, key))

    async def status(self) -> Status:
        reply = await self._call(GetStatus(), (Status, ""))
        assert isinstance(reply, Status)
        return reply

    async def probe(self) -> None:
        await self.status()

    def shut_down(self) -> None:
        self._frames.post(Shutdown())

    async def _send(self, command: Command) -> None:
        if self._ended is not None:
            raise EngineDied(self._ended)
        await self._frames.send(command)

    async def _call(self, command: Command, key: ReplyKey) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        # Replies of one kind and key come in order. A caller that gave up stays queued and swallows its own reply.
        self._replies.setdefault(key, deque()).append(future)
        await self._send(command)
        return await future

    def _deliver(self, event: Event) -> None:
        match event:
            case Step(tokens=tokens):
                for token in tokens:
                    if (answer := self._requests.get(token.request_id)) is not None:
                        answer.put(token)  # else it was cancelled; its last tokens were already on their way
            case Refused(request_id=request_id, code=code, message=message):
                if (answer := self._requests.get(request_id)) is not None:
                    kind = Overloaded if code == "overloaded" else RequestError
                    answer.fail(kind(code, message))
            case AdapterLoaded(key=key) | AdapterUnloaded(key=key):
                self._answer((type(event), key), event)
            case AdapterRefused(key=key, message=message):
                self._answer((AdapterLoaded, key), AdapterError(message))
            case Status():
                self._answer((Status, ""), event)
            case Ready() | Failed():
                raise FrameMalformed(f"the engine sent {type(event).__name__} in the middle of its work")

    def _answer(self, key: ReplyKey, reply: Reply | OpenLoraError) -> None:
        waiting = self._replies.get(key)
        if not waiting:
            raise FrameMalformed(f"the engine answered {key[0].__name__} unasked")
        future = waiting.popleft()
        if not waiting:
            del self._replies[key]
        if future.done():
            return
        if isinstance(reply, OpenLoraError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _end(self, reason: str) -> None:
        self._ended = reason
        for answer in self._requests.values():
            answer.fail(EngineDied(reason))
        self._requests.clear()
        for future in itertools.chain.from_iterable(self._replies.values()):
            if not future.done():
                future.set_exception(EngineDied(reason))
        self._replies.clear()
