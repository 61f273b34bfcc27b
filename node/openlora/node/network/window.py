"""How much of a streamed answer may be under way between agent and network process.

A side sends until `WINDOW_BYTES` are out that the other has not taken, and the taker says `Taken` for what it has used
up, in large pieces. So a slow reader at either end slows the writer at the other, through both processes, and no
buffer between them grows.
"""

from typing import Final

MAX_REPLY_BYTES: Final = 64 << 10
WINDOW_BYTES: Final = 256 << 10
_OVERHEAD_BYTES: Final = 64  # what an empty reply costs whoever holds it
_SAY_AT_BYTES: Final = WINDOW_BYTES // 4


def cost(data: bytes) -> int:
    """The bytes that a reply counts for."""
    return len(data) + _OVERHEAD_BYTES


class SendWindow:
    """The sender's account."""

    def __init__(self) -> None:
        self._out = 0

    @property
    def open(self) -> bool:
        return self._out < WINDOW_BYTES

    def sent(self, data: bytes) -> None:
        self._out += cost(data)

    def taken(self, count: int) -> None:
        self._out -= count


class TakeWindow:
    """The taker's account."""

    def __init__(self) -> None:
        self._held = 0
        self._unsaid = 0

    def came(self, data: bytes) -> bool:
        """False when the sender has sent more than was agreed."""
        self._held += cost(data)
        return self._held <= WINDOW_BYTES + cost(data)

    def took(self, data: bytes) -> int:
        """How many bytes to say `Taken` for now; mostly 0."""
        self._held -= cost(data)
        self._unsaid += cost(data)
        if self._unsaid < _SAY_AT_BYTES:
            return 0
        said, self._unsaid = self._unsaid, 0
        return said
