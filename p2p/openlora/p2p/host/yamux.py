"""The multiplexer, yamux (https://github.com/hashicorp/yamux/blob/master/spec.md), with every bound that it needs.

py-libp2p's own accepts streams without end, buffers past the window with a warning, polls for window updates and gives
up after five seconds, and lets a cancelled write leave half a frame on the wire. This one has its contract (IMuxedConn,
IMuxedStream) and:

- one task reads frames, another writes them: whoever is cancelled while he waits harms only his own stream;
- a peer that breaks the protocol or a limit is cut, with a counted reason; over the cap of streams, a new one is reset;
- what each peer sends is paid for at a rate (`Guard.pay`): reading pauses, and TCP slows the sender down.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from openlora.p2p.host.guard import Guard, Traffic
from openlora.p2p.host.stream import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    ProtocolBroken,
    YamuxStream,
)
from openlora.p2p.network import PeerId

_log = logging.getLogger(__name__)

PROTOCOL_ID: Final = "/yamux/1.0.0"
_BATCH_BYTES: Final = 65535 - 16
_CLOSE_TIMEOUT_S: Final = 5.0  # for the library to tell everyone that the connection is gone


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
        self.send(WINDOW_UPDATE, SYN, stream.stream_id, 0)
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
            raise ProtocolBroken("buffered-bytes")

    def send(self, kind: int, flags: int, stream_id: int, length: int, data: memoryview | bytes = b"") -> None:
        """Queues one frame. Data's writers wait before (`wait_sendable`); answers do not, so those are counted."""
        if self._closed.is_set():
            return
        self._unsent.append(HEADER.pack(0, kind, flags, stream_id, length) + data)
        self._unsent_bytes += HEADER.size + len(data)
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
        except ProtocolBroken as broken:
            self._guard.penalise(self.peer, str(broken))
        except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("event=connection_lost peer=%s reason=%r", self.peer, str(error))
        except Exception:
            _log.exception("event=connection_failed peer=%s", self.peer)
        self.cut()

    async def _read_frames(self) -> None:
        while True:
            version, kind, flags, stream_id, length = HEADER.unpack(await self._take(HEADER.size))
            if version != 0 or kind > GO_AWAY or flags > 0xF:
                raise ProtocolBroken("yamux-protocol")
            await self._pay(self.limits.frame_cost_bytes)
            if kind in (DATA, WINDOW_UPDATE):
                await self._handle_stream_frame(kind, flags, stream_id, length)
            elif kind == GO_AWAY:
                return
            elif flags & SYN:
                self._reply(PING, ACK, 0, length)

    async def _handle_stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if flags & SYN:
            self._open_inbound(stream_id)
        stream = self._streams.get(stream_id)
        if kind == DATA:
            if length > self.limits.largest_window_bytes:
                raise ProtocolBroken("window-overrun")
            data = await self._take(length)
            if stream is not None:
                stream.receive(data)
        elif stream is not None:
            stream.widen(length)
        if stream is not None and flags & RST:
            stream.broken()
        elif stream is not None and flags & FIN:
            stream.ended()

    def _open_inbound(self, stream_id: int) -> None:
        if stream_id <= self._last_inbound_id or stream_id % 2 == self._next_id % 2:
            raise ProtocolBroken("yamux-protocol")
        self._last_inbound_id = stream_id
        # A stream that was reset before anybody took it still waits to be taken: as many may wait as may be open.
        waiting = self._accepted.statistics().current_buffer_used
        if max(self._inbound, waiting) >= self.limits.inbound_streams:
            self._refused += 1
            if self._refused > self.limits.refused_streams:
                raise ProtocolBroken("streams-flood")
            self.refuse("streams")
            self._reply(WINDOW_UPDATE, RST, stream_id, 0)
            return
        stream = YamuxStream(self, stream_id, inbound=True)
        self._inbound += 1
        self._streams[stream_id] = stream
        self._reply(WINDOW_UPDATE, ACK, stream_id, 0)
        self._accepted_in.send_nowait(stream)

    def _reply(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if len(self._unsent) >= self.limits.unsent_replies:
            raise ProtocolBroken("unread-replies")
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
                raise ProtocolBroken("reads-nothing")
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
            self.send(PING, SYN, 0, 0)

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
            _log.debug("event=close_failed peer=%s reason=%r", self.peer, str(error))
        if self.on_close is not None:
            with trio.move_on_after(_CLOSE_TIMEOUT_S):
                await self.on_close()
