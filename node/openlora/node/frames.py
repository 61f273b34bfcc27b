"""Typed messages over a byte stream: a length (u32, big-endian), then that many bytes of msgpack.

Agent and children speak frames over Unix sockets. A frame's length is checked before its payload is read, its payload
is decoded straight into the agreed union of structs, and every way it can go wrong has a name (`FrameTooLarge`,
`FrameTruncated`, `FrameMalformed`). After any of them the stream is out of step and must be closed.
"""

import asyncio
import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from openlora.node.errors import FrameMalformed, FrameTooLarge, FrameTruncated
from openlora.node.malformed import MALFORMED

MAX_FRAME_BYTES = 16 << 20  # a prompt of a million tokens is 5 MB
_HEADER = struct.Struct(">I")
_READ_BYTES = 64 << 10

Incoming = TypeVar("Incoming")


def pack(message: msgspec.Struct, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """One frame. Raises FrameTooLarge."""
    payload = msgspec.msgpack.encode(message)
    _check_length(len(payload), max_bytes)
    return _HEADER.pack(len(payload)) + payload


class FrameDecoder(Generic[Incoming]):
    """Bytes in, messages out, for whoever does the reading. `union` is the type of all messages that may come."""

    def __init__(self, union: Any, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(union)
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Incoming | None:
        """The next whole message, or None until more is fed. Raises FrameTooLarge, FrameMalformed."""
        if len(self._buffer) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._buffer)
        _check_length(length, self._max_bytes)
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        try:
            return self._decoder.decode(payload)
        except MALFORMED as error:
            raise FrameMalformed(f"a frame of {length} bytes is not a known message: {error}") from None

    def end(self) -> None:
        """The stream has ended. Raises FrameTruncated unless it ended between two frames."""
        if self._buffer:
            raise FrameTruncated(f"the peer ended in the middle of a frame, {len(self._buffer)} bytes into it")


class AsyncFrames(Generic[Incoming]):
    """The asyncio end of a connection. Reads by one task; writes by any."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, union: Any, max_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self._reader, self._writer, self._max_bytes = reader, writer, max_bytes
        self._decoder = FrameDecoder[Incoming](union, max_bytes)

    async def receive(self) -> Incoming | None:
        """The next message; None when the peer closed between two frames. Raises FrameError."""
        while (message := self._decoder.next()) is None:
            try:
                data = await self._reader.read(_READ_BYTES)
            except ConnectionError:  # the peer was killed with frames of ours unread
                data = b""
            if not data:
                self._decoder.end()
                return None
            self._decoder.feed(data)
        return message

    def post(self, message: msgspec.Struct) -> None:
        """Queue a small message without waiting, which is possible in any `finally`. Raises FrameTooLarge."""
        if not self._writer.is_closing():
            self._writer.write(pack(message, self._max_bytes))

    async def send(self, message: msgspec.Struct) -> None:
        """Queue a message and wait until the peer keeps up. Raises FrameTooLarge; a dead peer shows in `receive`."""
        self.post(message)
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    def close(self) -> None:
        self._writer.close()


class BlockingFrames(Generic[Incoming]):
    """The blocking end, for a loop that computes: it looks for messages between two steps and sleeps when idle."""

    def __init__(self, sock: socket.socket, union: Any, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._socket, self._max_bytes = sock, max_bytes
        self._decoder = FrameDecoder[Incoming](union, max_bytes)

    def send(self, *messages: msgspec.Struct) -> None:
        """One write for all. Raises FrameTooLarge, and ConnectionError when the peer is gone."""
        self._socket.sendall(b"".join(pack(message, self._max_bytes) for message in messages))

    def receive(self, *, wait: bool) -> list[Incoming] | None:
        """All messages that have come; with `wait`, at least one. None when the peer closed. Raises FrameError."""
        messages: list[Incoming] = []
        while not messages:
            open_ = self._fill(wait)
            while (message := self._decoder.next()) is not None:
                messages.append(message)
            if not open_ and not messages:
                self._decoder.end()
                return None
            if not wait:
                break
        return messages

    def _fill(self, wait: bool) -> bool:
        """Read what there is, blocking for the first byte if asked to. False when the stream has ended."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            while data := self._socket.recv(_READ_BYTES, flags):
                self._decoder.feed(data)
                flags = socket.MSG_DONTWAIT
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {max_bytes}")
