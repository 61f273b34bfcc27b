"""The nodes that are alive, as their presence records tell."""

import time
from collections.abc import Callable, Set
from typing import Final

from openlora.p2p.presence.record import Presence

MAX_NODES: Final = 4096


class NodeTable:
    """The newest record of each operator, until it expires.

    It outlives the network process: what the next one has not heard again by then goes with its expiry.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: dict[str, Presence] = {}

    def seen(self, record: Presence) -> None:
        if record.operator in self._records or len(self._records) < MAX_NODES:
            self._records[record.operator] = record

    def gone(self, operator: str) -> None:
        self._records.pop(operator, None)

    def keep(self, operators: Set[str]) -> None:
        """Drops the records of all others."""
        self._records = {name: record for name, record in self._records.items() if name in operators}

    def live(self) -> tuple[Presence, ...]:
        now = self._clock()
        self._records = {name: record for name, record in self._records.items() if record.expires_at > now}
        return tuple(self._records.values())
