"""Whether another agent runs as this node, on a copy of its state folder or with its hot key, as presence tells.

The journal forbids a second receipt for what one agent has answered. Two agents have two journals, and a client that
sends both the same order would hold two receipts for it, which cost half of all stake.
"""

import asyncio
import logging
from typing import Final, NoReturn

from openlora.node.network.client import NetworkClient

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0


class TwinWatch:
    """A record of our own operator in the table is not ours: the network process knows those that it made."""

    def __init__(self, network: NetworkClient, operator: str) -> None:
        self._network, self._operator = network, operator.lower()

    @property
    def alone(self) -> bool:
        return all(record.operator != self._operator for record in self._network.nodes())

    async def run(self, look_s: float = LOOK_S) -> NoReturn:
        """Says so once, each time that one comes."""
        alone = True
        while True:
            was_alone, alone = alone, self.alone
            if was_alone and not alone:
                log.error("event=twin_seen operator=%s", self._operator)
            await asyncio.sleep(look_s)
