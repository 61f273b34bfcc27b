"""What this node tells the DHT that it has."""

import logging
from collections.abc import Iterable

import trio

from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import P2PError
from openlora.p2p.network import Network

log = logging.getLogger(__name__)


class Providing:
    """Provides one CID after the other, so that a node with thousands does not flood its neighbours."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waiting: dict[str, None] = {}
        self._added = trio.Event()

    def add(self, cids: Iterable[str]) -> None:
        self._waiting |= dict.fromkeys(cids)
        self._added.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            while self._waiting:
                cid = next(iter(self._waiting))
                del self._waiting[cid]
                await self._provide(cid)
            self._added = trio.Event()
            await self._added.wait()

    async def _provide(self, cid: str) -> None:
        try:
            await self._network.provide(Cid.parse(cid))
        except P2PError as error:  # the network tries again by itself
            log.warning("event=provide_failed cid=%s reason=%r", cid, str(error))
