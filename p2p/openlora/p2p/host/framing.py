"""The lengths that strangers announce, on streams whose frames stand behind a varint each."""

from typing import Final

_LONGEST_VARINT_BITS: Final = 35


class FrameLengths:
    """Follows such a stream by what is read of it, however it is cut up. `code` is what a frame too long is refused by.

    The library refuses them, too, but silently."""

    __slots__ = ("_length", "_max_bytes", "_rest", "_shift", "code")

    def __init__(self, max_bytes: int, code: str) -> None:
        self.code: Final = code
        self._max_bytes = max_bytes
        self._rest = 0  # of the frame that we are in
        self._length = self._shift = 0  # of a varint, as far as it was read

    def fit(self, data: bytes) -> bool:
        """False if in `data` a frame is announced that is too long."""
        at = 0
        while at < len(data):
            if self._rest:
                step = min(self._rest, len(data) - at)
                self._rest -= step
                at += step
            elif not self._follow(data[at]):
                return False
            else:
                at += 1
        return True

    def _follow(self, byte: int) -> bool:
        self._length |= (byte & 0x7F) << self._shift
        self._shift += 7
        if self._length > self._max_bytes or self._shift > _LONGEST_VARINT_BITS:
            return False
        if byte < 0x80:
            self._rest, self._length, self._shift = self._length, 0, 0
        return True
