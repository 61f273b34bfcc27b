"""What has changed in the table, for one reader that may be slower than the network."""

from collections import OrderedDict
from typing import Final

import trio

from openlora.p2p.presence.record import Presence

Change = tuple[str, Presence | None]
_MAX_PENDING: Final = 20_000


class Changes:
    """Yields (operator, its record, or None when it has gone), for ever. Of an operator that changed several times
    since the reader last looked only the last state is told. Should the reader fall 20,000 operators behind, the
    oldest changes are lost; records carry their own expiry, and the living are told anew every few seconds."""

    def __init__(self) -> None:
        self._pending: OrderedDict[str, Presence | None] = OrderedDict()
        self._arrived = trio.Event()

    def put(self, operator: str, record: Presence | None) -> None:
        self._pending[operator] = record
        if len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        self._arrived.set()

    def __aiter__(self) -> "Changes":
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._pending.popitem(last=False)
