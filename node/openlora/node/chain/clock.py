"""This machine's clock held against the chain's, which decides about deadlines and leases."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

MAX_SLOW_S: Final = 15.0  # no block comes from further in the future
MAX_FAST_S: Final = 60.0  # a block that is new has been under way for no longer
BLOCKS: Final = 3  # in a row


class ClockWatch:
    """Warns once when the clocks part, and knows the chain's time without asking for it."""

    def __init__(
        self, clock: Callable[[], float] = time.time, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.ahead_s = 0  # of the chain's, once they have parted; negative where ours is behind, 0 while they agree
        self._clock = clock
        self._monotonic = monotonic
        self._newest: tuple[int, float] | None = None  # the newest block's time, and when it came
        self._ahead: deque[float] = deque(maxlen=BLOCKS)

    def look(self, block_at_s: int) -> None:
        """`block_at_s`: the time of a block that has just come to be the chain's newest."""
        self._newest = block_at_s, self._monotonic()
        self._ahead.append(self._clock() - block_at_s)
        least = min(self._ahead, key=abs)
        if len(self._ahead) < BLOCKS or -MAX_SLOW_S <= least <= MAX_FAST_S:
            self.ahead_s = 0
        else:
            if not self.ahead_s:
                log.warning("event=clock_off ahead_s=%d", round(least))
            self.ahead_s = round(least)

    def chain_s(self) -> float:
        """The chain's time, in unix seconds: this machine's, less what it is ahead."""
        return self._clock() - self.ahead_s

    def now_s(self, block_at_s: int) -> float:
        """The chain's time where a server shows a block of this time as the newest: later if a newer one came, or none
        for long. Whatever this machine's clock says."""
        if self._newest is None:
            return block_at_s
        newest_s, came_s = self._newest
        return max(block_at_s, newest_s + self._monotonic() - came_s)
