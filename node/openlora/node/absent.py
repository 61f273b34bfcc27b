"""What nobody had a moment ago, so that it is not looked for again at once."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

FORGET_S: Final = 30.0
MOST: Final = 4096


class Absent:
    """Digests that could not be had, each for half a minute, the oldest forgotten first.

    A search takes seconds of one of the places for live jobs; jobs that name what does not exist cost little.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, digest: bytes) -> None:
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + FORGET_S
        if len(self._until) > MOST:
            self._until.popitem(last=False)

    def __contains__(self, digest: bytes) -> bool:
        return self._until.get(digest, 0.0) > self._clock()
