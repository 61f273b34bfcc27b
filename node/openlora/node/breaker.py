"""A pause after jobs that failed one after another: every claim given back costs a part of its bond."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

FAILURES: Final = 3  # in a row
FIRST_PAUSE_S: Final = 60.0
LONGEST_PAUSE_S: Final = 3_600.0


@dataclass(slots=True)
class Breaker:
    """Opens at the third failure in a row and, after each pause, at the next one, for twice as long."""

    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _until: float = 0.0

    @property
    def open(self) -> bool:
        return self.clock() < self._until

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES and not self.open:
            pause_s = min(FIRST_PAUSE_S * 2 ** min(self._failures - FAILURES, 10), LONGEST_PAUSE_S)
            self._until = self.clock() + pause_s
            log.error("event=breaker_open failures=%d pause_s=%.0f", self._failures, pause_s)

    def worked(self) -> None:
        self._failures = 0
