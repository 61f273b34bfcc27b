"""One stream of a multiplexed connection, with its windows, and the frames that both are made of."""

import struct
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from openlora.p2p.host.framing import FrameLengths

if TYPE_CHECKING:
    from openlora.p2p.host.yamux import YamuxConnection

HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
MAX_DATA_BYTES: Final = 65535 - 16 - HEADER.size  # so that one frame fills one noise message


class ProtocolBroken(Exception):
    """The peer broke the protocol or a limit; the message is the refusal's code."""


class YamuxStream(IMuxedStream):
    """One stream. `close` ends our side only. Reads and writes may be cancelled at any time."""

    def __init__(self, connection: "YamuxConnection", stream_id: int, *, inbound: bool) -> None:
        self.muxed_conn: YamuxConnection = connection
        self.stream_id = stream_id
        self.inbound = inbound
        self.budget_bytes: int | None = connection.limits.negotiation_bytes  # what may be read; None when negotiated
        self.frames: FrameLengths | None = None  # what is read must keep to
        self.on_over: Callable[[], None] | None = None  # called once, when neither side will say more
        self._received = bytearray()
        self._receive_window = self._target_window = connection.limits.stream_window_bytes
        self._send_window = connection.limits.stream_window_bytes
        self._changed = trio.Event()
        self._writing = trio.Lock()
        self._ended_by_peer = self._ended_by_us = self._broken = False
        self.discarding_since_s: float | None = None

    @property
    def over(self) -> bool:
        return self._broken or (self._ended_by_peer and self._ended_by_us)

    async def read(self, n: int | None = None) -> bytes:
        """At least one byte and at most `n`. Raises MuxedStreamEOF at the end, MuxedStreamReset if it was broken."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._received:
            if self._broken:
                raise MuxedStreamReset("the stream was reset")
            if self._ended_by_peer:
                raise MuxedStreamEOF("the peer has ended the stream")
            await self._changed.wait()
        data = bytes(self._received if n is None or n < 0 else self._received[:n])
        del self._received[: len(data)]
        if self.budget_bytes is not None:
            self.budget_bytes -= len(data)
            if self.budget_bytes < 0:
                self.muxed_conn.refuse("negotiation-bytes")
                self.break_off()
                raise MuxedStreamReset("too much was said before the protocol")
        if not self._broken:
            self.muxed_conn.buffer(-len(data))
            self._grant()
        if self.frames is not None and not self.frames.fit(data):
            self.muxed_conn.penalise(self.frames.code)
            self.break_off()
            raise MuxedStreamReset("the peer announced a message of more than it may send")
        return data

    async def write(self, data: bytes) -> None:
        """Returns once the peer's window has taken all of it, and it is on its way."""
        async with self._writing:
            rest = memoryview(data)
            while rest:
                await self._wait_to_send()
                piece = rest[: min(self._send_window, MAX_DATA_BYTES)]
                self._send_window -= len(piece)
                self.muxed_conn.send(DATA, 0, self.stream_id, len(piece), piece)
                rest = rest[len(piece) :]
        await self.muxed_conn.wait_sendable()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.end()

    async def reset(self) -> None:
        self.break_off()
        await trio.lowlevel.checkpoint_if_cancelled()

    def end(self) -> None:
        if not (self._ended_by_us or self._broken):
            self._ended_by_us = True
            self.muxed_conn.send(WINDOW_UPDATE, FIN, self.stream_id, 0)
            self._tell()
            self.muxed_conn.forget_if_over(self)

    def break_off(self) -> None:
        if not self.over:
            self.muxed_conn.send(WINDOW_UPDATE, RST, self.stream_id, 0)
        self.broken()
        self._received.clear()

    def discard(self) -> None:
        """Nobody will read this stream any more: whatever comes is dropped, and no window is granted for it."""
        self._uncount()
        self._received.clear()
        self.discarding_since_s = trio.current_time()

    def broken(self) -> None:
        """It is over at once, for both sides. What had come before can be read by whoever still holds the stream."""
        self._uncount()
        self._broken = True
        self._tell()
        self.muxed_conn.forget_if_over(self)

    def receive(self, data: bytes) -> None:
        if len(data) > self._receive_window:
            raise ProtocolBroken("window-overrun")
        if data and self._ended_by_peer:
            raise ProtocolBroken("yamux-protocol")
        self._receive_window -= len(data)
        if self.discarding_since_s is None:
            self._received += data
            self.muxed_conn.buffer(len(data))
            self._tell()

    def ended(self) -> None:
        self._ended_by_peer = True
        self._tell()
        self.muxed_conn.forget_if_over(self)

    def widen(self, count: int) -> None:
        self._send_window += count
        if self._send_window > 0xFFFFFFFF:
            raise ProtocolBroken("yamux-protocol")
        self._tell()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _wait_to_send(self) -> None:
        await self.muxed_conn.wait_sendable()
        while True:
            if self._broken:
                raise MuxedStreamReset("the stream was reset")
            if self._ended_by_us:
                raise MuxedStreamClosed("the stream was closed")
            if self._send_window > 0:
                return
            await self._changed.wait()

    def _grant(self) -> None:
        """Hands the window back in halves. A reader that keeps up gets a larger one: it is what bounds the sender."""
        if self._ended_by_peer:
            return
        outstanding = self._target_window - self._receive_window - len(self._received)
        if outstanding < self._target_window // 2:
            return
        if not self._received:
            grown = min(2 * self._target_window, self.muxed_conn.limits.largest_window_bytes)
            outstanding += max(0, grown - self._target_window)
            self._target_window = max(self._target_window, grown)
        self._receive_window += outstanding
        self.muxed_conn.send(WINDOW_UPDATE, 0, self.stream_id, outstanding)

    def _uncount(self) -> None:
        if not self._broken:
            self.muxed_conn.buffer(-len(self._received))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
