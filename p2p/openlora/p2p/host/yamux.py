"""The multiplexer, yamux (https://github.com/hashicorp/yamux/blob/master/spec.md), with every bound that it needs.

py-libp2p's own accepts streams without end, buffers past the window with a warning, polls for window updates and gives
up after five seconds, and lets a cancelled write leave half a frame on the wire. This one has its contract (IMuxedConn,
IMuxedStream) and:

- one task reads frames, another writes them: whoever is cancelled while he waits harms only his own stream;
- a peer that breaks the protocol or a limit is cut, with a counted reason; over the cap of streams, a new one is reset;
- what each peer sends is paid for at a rate (`Guard.pay`): reading pauses, and TCP slows the sender down.
"""

import logging
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from openlora.p2p.host.framing import FrameLengths
from openlora.p2p.host.guard import Guard, Traffic
from openlora.p2p.network import PeerId

_log = logging.getLogger(__name__)

PROTOCOL_ID: Final = "/yamux/1.0.0"
_HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_MAX_DATA_BYTES: Final = 65535 - 16 - _HEADER.size  # so that one frame fills one noise message
_BATCH_BYTES: Final = 65535 - 16
_CLOSE_TIMEOUT_S: Final = 5.0  # for the library to tell everyone that the connection is gone


class _Broken(Exception):
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
                piece = rest[: min(self._send_window, _MAX_DATA_BYTES)]
                self._send_window -= len(piece)
                self.muxed_conn.send(_DATA, 0, self.stream_id, len(piece), piece)
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
            self.muxed_conn.send(_WINDOW_UPDATE, _FIN, self.stream_id, 0)
            self._tell()
            self.muxed_conn.forget_if_over(self)

    def break_off(self) -> None:
        if not self.over:
            self.muxed_conn.send(_WINDOW_UPDATE, _RST, self.stream_id, 0)
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
            raise _Broken("window-overrun")
        if data and self._ended_by_peer:
            raise _Broken("yamux-protocol")
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
            raise _Broken("yamux-protocol")
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
        self.muxed_conn.send(_WINDOW_UPDATE, 0, self.stream_id, outstanding)

    def _uncount(self) -> None:
        if not self._broken:
            self.muxed_conn.buffer(-len(self._received))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class YamuxConnection(IMuxedConn):
    """One peer's streams over one secured connection. `start` runs it and returns when it has ended."""

    def __init__(self, secured: ISecureConn, peer_id: ID, guard: Guard, traffic: Traffic) -> None:
        self.secured_conn = secured
        self.peer_id = peer_id
        self.peer: PeerId = PeerId(str(peer_id))
        self.limits = guard.limits
        self.traffic = traffic
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None  # set by the library
        self._guard = guard
        self._initiator = secured.is_initiator
        self._next_id = 1 if self._initiator else 2
        self._last_inbound_id = 0
        self._streams: dict[int, YamuxStream] = {}
        self._inbound = 0
        self._refused = 0
        self._accepted_in, self._accepted = trio.open_memory_channel[YamuxStream](guard.limits.inbound_streams)
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_bytes = 0
        self._unsent_changed = trio.Event()
        self._sent = trio.Event()
        self._unread = bytearray()
        self._heard_s = trio.current_time()
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        self.buffered_bytes = 0

    # The library's contract

    @property
    def is_initiator(self) -> bool:
        return self._initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self._closed.is_set()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    @property
    def inbound_from(self) -> str | None:
        address = None if self._initiator else self.get_remote_address()
        return address[0] if address is not None else None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()

    async def start(self) -> None:
        try:
            if not self._guard.admit(self):
                self.event_started.set()
                return
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._run, self._read_frames)
                    nursery.start_soon(self._run, self._write_frames)
                    nursery.start_soon(self._run, self._keep_alive)
                    self.event_started.set()
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def open_stream(self) -> YamuxStream:
        await self.wait_sendable()
        if self._closed.is_set():
            raise MuxedConnUnavailable("the connection is closed")
        stream = YamuxStream(self, self._next_id, inbound=False)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.send(_WINDOW_UPDATE, _SYN, stream.stream_id, 0)
        return stream

    async def accept_stream(self) -> YamuxStream:
        try:
            return await self._accepted.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("the connection is closed") from None

    async def close(self) -> None:
        self.cut()
        if self.event_started.is_set():
            await self._closed.wait()
        else:
            await self._end()

    # For its streams and the guard

    def cut(self) -> None:
        self._scope.cancel()

    def refuse(self, code: str) -> None:
        self._guard.refuse(self.peer, code)

    def penalise(self, code: str) -> None:
        self._guard.penalise(self.peer, code)

    def buffer(self, count: int) -> None:
        self.buffered_bytes += count
        self._guard.buffer(count)
        if count > 0 and self.buffered_bytes > self.limits.buffered_bytes_per_connection:
            raise _Broken("buffered-bytes")

    def send(self, kind: int, flags: int, stream_id: int, length: int, data: memoryview | bytes = b"") -> None:
        """Queues one frame. Data's writers wait before (`wait_sendable`); answers do not, so those are counted."""
        if self._closed.is_set():
            return
        self._unsent.append(_HEADER.pack(0, kind, flags, stream_id, length) + data)
        self._unsent_bytes += _HEADER.size + len(data)
        self._unsent_changed.set()

    async def wait_sendable(self) -> None:
        """Returns when what waits to be sent is little enough to add to it, or never will be sent."""
        await trio.lowlevel.checkpoint()
        while self._unsent_bytes >= self.limits.unsent_bytes and not self._closed.is_set():
            await self._sent.wait()

    def forget_if_over(self, stream: YamuxStream) -> None:
        if not stream.over or self._streams.pop(stream.stream_id, None) is None:
            return
        if stream.inbound:
            self._inbound -= 1
        if stream.on_over is not None:
            stream.on_over()

    # The three tasks

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Whatever ends one of the tasks ends the connection, and nothing else."""
        try:
            await task()
        except _Broken as broken:
            self._guard.penalise(self.peer, str(broken))
        except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("connection lost peer=%s: %s", self.peer, error)
        except Exception:
            _log.exception("connection failed peer=%s", self.peer)
        self.cut()

    async def _read_frames(self) -> None:
        while True:
            version, kind, flags, stream_id, length = _HEADER.unpack(await self._take(_HEADER.size))
            if version != 0 or kind > _GO_AWAY or flags > 0xF:
                raise _Broken("yamux-protocol")
            await self._pay(self.limits.frame_cost_bytes)
            if kind in (_DATA, _WINDOW_UPDATE):
                await self._handle_stream_frame(kind, flags, stream_id, length)
            elif kind == _GO_AWAY:
                return
            elif flags & _SYN:
                self._reply(_PING, _ACK, 0, length)

    async def _handle_stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if flags & _SYN:
            self._open_inbound(stream_id)
        stream = self._streams.get(stream_id)
        if kind == _DATA:
            if length > self.limits.largest_window_bytes:
                raise _Broken("window-overrun")
            data = await self._take(length)
            if stream is not None:
                stream.receive(data)
        elif stream is not None:
            stream.widen(length)
        if stream is not None and flags & _RST:
            stream.broken()
        elif stream is not None and flags & _FIN:
            stream.ended()

    def _open_inbound(self, stream_id: int) -> None:
        if stream_id <= self._last_inbound_id or stream_id % 2 == self._next_id % 2:
            raise _Broken("yamux-protocol")
        self._last_inbound_id = stream_id
        # A stream that was reset before anybody took it still waits to be taken: as many may wait as may be open.
        waiting = self._accepted.statistics().current_buffer_used
        if max(self._inbound, waiting) >= self.limits.inbound_streams:
            self._refused += 1
            if self._refused > self.limits.refused_streams:
                raise _Broken("streams-flood")
            self.refuse("streams")
            self._reply(_WINDOW_UPDATE, _RST, stream_id, 0)
            return
        stream = YamuxStream(self, stream_id, inbound=True)
        self._inbound += 1
        self._streams[stream_id] = stream
        self._reply(_WINDOW_UPDATE, _ACK, stream_id, 0)
        self._accepted_in.send_nowait(stream)

    def _reply(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if len(self._unsent) >= self.limits.unsent_replies:
            raise _Broken("unread-replies")
        self.send(kind, flags, stream_id, length)

    async def _write_frames(self) -> None:
        while True:
            if not self._unsent:
                self._unsent_changed = trio.Event()
                await self._unsent_changed.wait()
            batch = bytearray(self._unsent.popleft())
            while self._unsent and len(batch) + len(self._unsent[0]) <= _BATCH_BYTES:
                batch += self._unsent.popleft()
            with trio.move_on_after(self.limits.write_timeout_s) as timeout:
                await self.secured_conn.write(bytes(batch))
            if timeout.cancelled_caught:
                raise _Broken("reads-nothing")
            self._unsent_bytes -= len(batch)
            self._sent.set()
            self._sent = trio.Event()

    async def _keep_alive(self) -> None:
        """Notices a peer that is gone without a word, and streams that only wait for the peer to end them."""
        while True:
            await trio.sleep(self.limits.keepalive_s)
            now = trio.current_time()
            if now - self._heard_s > 2 * self.limits.keepalive_s:
                return
            for stream in tuple(self._streams.values()):
                if stream.discarding_since_s is not None and now - stream.discarding_since_s > self.limits.linger_s:
                    stream.break_off()
            self.send(_PING, _SYN, 0, 0)

    async def _take(self, count: int) -> bytes:
        """Exactly `count` bytes from the wire."""
        while len(self._unread) < count:
            piece = await self.secured_conn.read(None)
            if not piece:
                raise MuxedConnUnavailable("the peer has closed the connection")
            self._heard_s = trio.current_time()
            await self._pay(self.limits.frame_cost_bytes + len(piece))
            self._unread += piece
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    async def _pay(self, count: int) -> None:
        wait_s = self._guard.pay(self.peer, count)
        if wait_s > 0:
            await trio.sleep(wait_s)

    async def _end(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._sent.set()
        self._guard.released(self)
        for stream in tuple(self._streams.values()):
            stream.broken()
        self._unsent.clear()
        self._accepted_in.close()
        try:
            await self.secured_conn.close()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as error:
            _log.debug("closing peer=%s: %s", self.peer, error)
        if self.on_close is not None:
            with trio.move_on_after(_CLOSE_TIMEOUT_S):
                await self.on_close()
