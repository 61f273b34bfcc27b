"""The trio end of a connection that speaks frames."""

from typing import Any, Final, Generic

import msgspec
import trio

from openlora.node.frames import MAX_FRAME_BYTES, FrameDecoder, Incoming, pack

_READ_BYTES: Final = 64 << 10


class TrioFrames(Generic[Incoming]):
    """Reads by one task, writes by one."""

    def __init__(self, stream: trio.abc.Stream, union: Any, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._stream, self._max_bytes = stream, max_bytes
        self._decoder = FrameDecoder[Incoming](union, max_bytes)

    async def receive(self) -> Incoming | None:
        """The next message; None when the peer closed between two frames. Raises FrameError."""
        while (message := self._decoder.next()) is None:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:  # the peer was killed with frames of ours unread
                data = b""
            if not data:
                self._decoder.end()
                return None
            self._decoder.feed(data)
        return message

    async def send(self, message: msgspec.Struct) -> None:
        """Returns once the peer's socket has taken it. Raises FrameTooLarge, and trio.BrokenResourceError when the peer
        is gone. A cancelled send leaves the stream out of step."""
        await self._stream.send_all(pack(message, self._max_bytes))
