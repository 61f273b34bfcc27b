"""The chain's stakes, told to the network process: whose presence counts."""

import asyncio
import logging
from typing import Final

from openlora.node.errors import ChainError, NetworkDown
from openlora.node.network.client import NetworkClient
from openlora.node.network.staked import StakeDirectory

log = logging.getLogger(__name__)

REFRESH_S: Final = 5.0


async def keep_trusted(network: NetworkClient, directory: StakeDirectory, refresh_s: float = REFRESH_S) -> None:
    """Until cancelled. While the chain cannot be asked, those stay trusted who were."""
    while True:
        try:
            if await directory.refresh():
                await network.trust(directory.staked)
                log.info("event=trusted operators=%d", len(directory.staked))
        except (ChainError, NetworkDown) as error:
            log.warning("event=trust_waits reason=%r", str(error))
        await asyncio.sleep(refresh_s)
