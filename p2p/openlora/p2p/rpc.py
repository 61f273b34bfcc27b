"""One bounded request, a stream of bounded replies, on one stream of the network.

On the wire every frame is a big-endian u32 length and that many bytes, of which the first says what the rest is:

    asker      request · body
    responder  reply · body  (none or more), then  end  or  refusal · the reason in UTF-8

A length is checked before anything of that size is read. The asker keeps its side open for as long as it wants
replies, so that the responder stops working the moment it hangs up. A stream that ends without `end` was cut off.
"""

import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import trio

from openlora.p2p.errors import StreamLost, StreamRefused
from openlora.p2p.network import Network, PeerId, Stream

_LENGTH: Final = struct.Struct("!I")
_REASON_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Both sides' bounds. The request's default holds a signed order with its input document inline."""

    request_bytes: int = 256 * 1024
    reply_bytes: int = 256 * 1024
    request_timeout_s: float = 10.0  # from the stream's opening until the request is whole
    write_timeout_s: float = 30.0  # a reader that takes none of a reply for so long is dropped


class _Kind(IntEnum):
    REQUEST = 0
    REPLY = 1
    REFUSAL = 2
    END = 3


class _FormatBroken(StreamLost):
    """The peer sent what is none of our frames, not merely less than one."""


Answer = Callable[[PeerId, bytes], AsyncIterator[bytes]]
_DEFAULTS: Final = RpcLimits()


def serve(network: Network, protocol: str, answer: Answer, limits: RpcLimits = _DEFAULTS) -> None:
    """Answers every request for `protocol` with what `answer(peer, request)` yields, each at most `reply_bytes`.

    An `answer` that raises StreamRefused sends its message to the asker as the reason. It is cancelled when the asker
    hangs up; any other error of it resets the stream. Who sends no request, or a larger one than we take, is
    penalised: both sides of an honest conversation have the same limits."""

    async def handle(stream: Stream) -> None:
        await _respond(stream, await _take_request(network, stream, limits), answer, limits)

    network.handle(protocol, handle)


async def ask(
    network: Network,
    peer: PeerId,
    protocol: str,
    request: bytes,
    *,
    timeout_s: float,
    limits: RpcLimits = _DEFAULTS,
) -> AsyncGenerator[bytes]:
    """Yields the peer's replies as they come; whoever may stop before the last wraps it in `contextlib.aclosing`.

    `timeout_s` bounds the connecting with the request, and then each wait for the next reply. Raises StreamRefused
    with the peer's reason, PeerUnreachable, or StreamLost when the peer falls silent, goes away or breaks the format.
    """
    if len(request) > limits.request_bytes:
        raise StreamRefused(f"the request has {len(request)} bytes; the limit is {limits.request_bytes}")
    stream: Stream | None = None
    ended = False
    try:
        with _silence(timeout_s):
            stream = await network.open_stream(peer, [protocol])
            await _send(stream, _Kind.REQUEST, request)
        while True:
            with _silence(timeout_s):
                kind, body = await _receive(stream, limits.reply_bytes)
            match kind:
                case _Kind.REPLY:
                    yield body
                case _Kind.REFUSAL:
                    raise StreamRefused(_plain(body))
                case _Kind.END:
                    ended = True
                    return
                case _Kind.REQUEST:
                    raise StreamLost("the peer answered with a request")
    finally:
        if stream is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0), suppress(StreamLost):
                await (stream.close() if ended else stream.reset())


async def read_exactly(stream: Stream, count: int) -> bytes:
    """Exactly `count` bytes. Raises StreamLost when the peer's side ends before."""
    data = bytearray()
    while len(data) < count:
        piece = await stream.read(count - len(data))
        if not piece:
            raise StreamLost(f"the stream ended after {len(data)} of {count} bytes")
        data += piece
    return bytes(data)


async def _take_request(network: Network, stream: Stream, limits: RpcLimits) -> bytes:
    try:
        with _silence(limits.request_timeout_s):
            kind, request = await _receive(stream, limits.request_bytes)
        if kind is not _Kind.REQUEST:
            raise _FormatBroken("the peer opened with something other than a request")
    except _FormatBroken:
        network.penalise(stream.peer, "request-malformed")
        raise
    return request


async def _respond(stream: Stream, request: bytes, answer: Answer, limits: RpcLimits) -> None:
    lost: StreamLost | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, stream, nursery.cancel_scope)
        try:
            await _send_replies(stream, answer(stream.peer, request), limits)
            await stream.close()
        except StreamLost as error:
            lost = error
        nursery.cancel_scope.cancel()
    if lost is not None:
        raise lost


async def _send_replies(stream: Stream, replies: AsyncIterator[bytes], limits: RpcLimits) -> None:
    last, reason = _Kind.END, b""
    try:
        async with aclosing(_generator(replies)) as bodies:
            async for body in bodies:
                if len(body) > limits.reply_bytes:
                    raise ValueError(f"a reply of {len(body)} bytes; the limit is {limits.reply_bytes}")
                with _silence(limits.write_timeout_s):
                    await _send(stream, _Kind.REPLY, body)
    except StreamRefused as refusal:
        last, reason = _Kind.REFUSAL, str(refusal)[:_REASON_CHARACTERS].encode()
    with _silence(limits.write_timeout_s):
        await _send(stream, last, reason)


async def _generator(replies: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """`replies` as something that can be closed: an abandoned generator must end now, not when it is collected."""
    try:
        async for body in replies:
            yield body
    finally:
        if isinstance(replies, AsyncGenerator):
            await replies.aclose()


async def _watch(stream: Stream, answering: trio.CancelScope) -> None:
    """The asker says nothing more: whatever is read now is the end of the conversation."""
    with suppress(StreamLost):
        await stream.read(1)
    answering.cancel()
    with trio.CancelScope(shield=True), trio.move_on_after(1.0), suppress(StreamLost):
        await stream.reset()


async def _send(stream: Stream, kind: _Kind, body: bytes) -> None:
    await stream.write(_LENGTH.pack(1 + len(body)) + bytes((kind,)) + body)


async def _receive(stream: Stream, max_bytes: int) -> tuple[_Kind, bytes]:
    (length,) = _LENGTH.unpack(await read_exactly(stream, _LENGTH.size))
    if not 1 <= length <= 1 + max_bytes:
        raise _FormatBroken(f"a frame of {length} bytes; the limit is {1 + max_bytes}")
    payload = await read_exactly(stream, length)
    try:
        return _Kind(payload[0]), payload[1:]
    except ValueError:
        raise _FormatBroken(f"a frame of unknown kind {payload[0]}") from None


@contextmanager
def _silence(seconds: float) -> Iterator[None]:
    """Raises StreamLost when the body takes longer than `seconds`."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise StreamLost(f"the peer was silent for {seconds:g} s")


def _plain(reason: bytes) -> str:
    """A stranger's words, fit for a log or a terminal."""
    text = reason.decode("utf-8", "replace")[:_REASON_CHARACTERS]
    return "".join(character if character.isprintable() else "?" for character in text)
