"""The agent's fetches, carried out in the network process."""

import errno
import logging
from typing import Final, Literal

import trio

from openlora.node.network.messages import Fetch, Fetched, FetchFailed
from openlora.p2p.bitswap.service import Bitswap
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import BlockMissing, ContentRefused, OverBudget, StoreFull
from openlora.p2p.network import PeerId

log = logging.getLogger(__name__)

_MAX_FETCHES: Final = 16  # at once; the others wait their turn
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class Fetching:
    """Fetches into the block store of `bitswap`, a bounded number at once."""

    def __init__(self, bitswap: Bitswap) -> None:
        self._bitswap = bitswap
        self._turns = trio.CapacityLimiter(_MAX_FETCHES)

    async def fetch(self, fetch: Fetch) -> Fetched | FetchFailed:
        """How it went: what was fetched, or why not."""
        try:
            async with self._turns:
                fetched = await self._bitswap.fetch(
                    Cid.parse(fetch.cid),
                    max_bytes=fetch.max_bytes,
                    whole=fetch.whole,
                    hints=[PeerId(peer) for peer in fetch.hints],
                )
        except Exception as error:
            code = _code(error)
            if code == "failed":
                log.exception("event=fetch_failed cid=%s", fetch.cid)
            return FetchFailed(id=fetch.id, code=code, message=str(error) or type(error).__name__)
        return Fetched(id=fetch.id, blocks=fetched.blocks, bytes=fetched.bytes)


def _code(error: Exception) -> Literal["missing", "refused", "budget", "full", "failed"]:
    match error:
        case BlockMissing():
            return "missing"
        case OverBudget():
            return "budget"
        case ContentRefused():
            return "refused"
        case StoreFull():
            return "full"
        case OSError(errno=number) if number in _NO_ROOM:
            return "full"
        case _:
            return "failed"
