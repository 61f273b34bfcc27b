"""Whom a client lets read its private job: the node it named, or those that could take it, one at a time."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from eth_utils.address import to_checksum_address

from openlora.contracts import JobSpec
from openlora.node.errors import NetworkError, RequestError
from openlora.node.market import Market, Offer
from openlora.node.network.client import NetworkClient
from openlora.node.private.kept import KeptKey
from openlora.node.private.sealing import Recipient, wrap
from openlora.p2p.presence.record import Presence

log = logging.getLogger(__name__)

MEET_S: Final = 20.0  # until a node that is there has been heard of
POLL_S: Final = 0.1


def able(nodes: Iterable[Presence], base_id: bytes, bid: tuple[int, int], only: str | None) -> Sequence[Presence]:
    """Those that serve the base for a bid (token wei per 1,000 input and output tokens), the cheapest first; of these
    `only` the operator that is named, if one is."""

    def ask(node: Presence) -> tuple[int, int]:
        return int(node.status.ask.in_price_per_k), int(node.status.ask.out_price_per_k)

    found = [
        node
        for node in nodes
        if any(model.base_id == base_id.hex() for model in node.status.models)
        and ask(node)[0] <= bid[0]
        and ask(node)[1] <= bid[1]
        and only in (None, node.operator)
    ]
    return sorted(found, key=lambda node: (sum(ask(node)), node.operator))


async def meet(market: Market, network: NetworkClient, base_id: bytes, offer: Offer) -> None:
    """Returns once there is a node to invite: nothing should be in escrow before. Raises NetworkError."""
    bid = (offer.in_price_wei_per_k, offer.out_price_wei_per_k)
    without_key: set[str] = set()
    for _ in range(int(MEET_S / POLL_S)):
        for node in able(network.nodes(), base_id, bid, offer.only_node):
            if node.operator not in without_key:
                if any(await _encryption_key(market, node.operator)):
                    return
                without_key.add(node.operator)
        await asyncio.sleep(POLL_S)
    whose = f" of {offer.only_node}" if offer.only_node else ""
    raise NetworkError(
        f"no node{whose} that takes private jobs of this base at this price was met in {MEET_S:.0f} s; "
        "`openlora network` shows who is there"
    )


@dataclass(slots=True)
class Invitations:
    """To one private job of the market key's own. Whoever was invited can read it from then on."""

    market: Market
    network: NetworkClient
    job_id: int
    spec: JobSpec
    base_id: bytes
    kept: KeptKey
    _asked: list[str] = field(default_factory=list)  # operators, the longest ago first

    async def next(self) -> tuple[Presence, bytes] | None:
        """The node whose turn it is, and the key wrapped to it: those that were not asked yet, the cheapest first; then
        those that were, again. None while there is nobody."""
        bid = (self.spec.in_price_per_k, self.spec.out_price_per_k)
        nodes = able(self.network.nodes(), self.base_id, bid, self.kept.node)
        for node in sorted(nodes, key=self._turn):
            if (wrapped := await self.wrapped_for(node.operator)) is not None:
                self._asked = [operator for operator in self._asked if operator != node.operator] + [node.operator]
                return node, wrapped
        return None

    async def wrapped_for(self, operator: str) -> bytes | None:
        """The key for an operator's node; None if the client does not mean that one, or it has no key on chain."""
        if self.kept.node not in (None, operator):
            return None
        recipient = Recipient(self.market.chain.chain_id, self.market.queue.address, self.job_id, operator)
        try:
            return wrap(self.kept.key, await _encryption_key(self.market, operator), recipient)
        except RequestError as error:
            log.info("event=not_invited job_id=%d reason=%r", self.job_id, str(error))
            return None

    def _turn(self, node: Presence) -> int:
        return self._asked.index(node.operator) + 1 if node.operator in self._asked else 0


async def _encryption_key(market: Market, operator: str) -> bytes:
    return (await market.chain.call(market.nodes.node(to_checksum_address(operator)))).encryption_key
