"""A number that never comes twice, whatever crashes: what orders a node's presence records."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from openlora.p2p import durable

_RESERVED: Final = 1000  # numbers a write of the file
_LARGEST: Final = 1 << 60  # milliseconds: no clock says so


class SequenceCounter:
    """Owns the file `path`, which holds a number that no `next` has reached.

    After a crash the rest of a reserved range is skipped, never repeated. Where the file was lost, counting starts at
    the clock's milliseconds, which are ahead of any counter that ran before: nobody announces a thousand times a
    second. `next` blocks on the disk once in a thousand calls. One process at a time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._next = max(self._stored(), int(clock() * 1000))
        self._first = self._next  # of this life
        self._end = self._next  # of the reserved range

    @property
    def given(self) -> range:
        """The numbers of this life."""
        return range(self._first, self._next)

    def next(self) -> int:
        """Above every number before. Raises OSError if a new range cannot be made durable."""
        if self._next >= self._end:
            end = self._next + _RESERVED
            durable.write(self._path, f"{end}\n".encode())
            self._end = end
        self._next += 1
        return self._next - 1

    def _stored(self) -> int:
        try:
            stored = int(self._path.read_bytes()[:32])
        except (FileNotFoundError, ValueError):  # a damaged file is as good as a lost one
            return 0
        return stored if 0 < stored < _LARGEST else 0
