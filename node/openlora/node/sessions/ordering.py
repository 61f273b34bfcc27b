"""From a client's open session to its node: who it is, where it is, and how they stand."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from openlora.node.errors import ConfigError, NetworkError
from openlora.node.network.client import NetworkClient
from openlora.node.network.participant import Participant
from openlora.node.sessions.conversation import Answered, Conversation, Place
from openlora.node.sessions.deposits import Deposit, Deposits
from openlora.p2p.presence.record import Presence

MEET_S: Final = 20.0  # until a node that is there has been heard of
POLL_S: Final = 0.1


async def converse(peer: Participant, node: str | None = None) -> tuple[Conversation, list[Answered]]:
    """A conversation about this key's open session (with `node`, if one is named) with the largest rest; and what was
    answered in an earlier one and is paid now. Raises ConfigError, NetworkError."""
    deposits = Deposits(peer.market.desk)
    found = await deposits.open_now(node)
    if not found:
        with_whom = f" with {node}" if node else ""
        raise ConfigError(f"no session{with_whom} is open; `openlora session open` deposits for a node")
    deposit, record = await _first_met(peer.network, found)
    conversation = Conversation(peer.network, peer.market.key, Place(record, deposits.domain, deposit.id))
    return conversation, await conversation.start(time.time())


async def _first_met(network: NetworkClient, deposits: Sequence[Deposit]) -> tuple[Deposit, Presence]:
    """The first of the deposits whose node is there. Raises NetworkError when none is within some seconds."""
    for _ in range(int(MEET_S / POLL_S)):
        met = {record.operator: record for record in network.nodes()}
        for deposit in deposits:
            if (record := met.get(deposit.session.node.lower())) is not None:
                return deposit, record
        await asyncio.sleep(POLL_S)
    nodes = ", ".join(sorted({deposit.session.node for deposit in deposits}))
    raise NetworkError(f"no node of an open session was met in {MEET_S:.0f} s: {nodes}; try again, or another node")
