"""The signed lane: orders that clients send directly, paid from a deposit for this node by cumulative vouchers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from openlora.contracts import Domain, Sessions
from openlora.node.answering import Answerer
from openlora.node.chain.client import ChainClient
from openlora.node.chain.sender import Sender
from openlora.node.config import SessionsConfig
from openlora.node.facts import ChainFacts
from openlora.node.journal import Journal
from openlora.node.sessions.cashier import Cashier, Checks
from openlora.node.sessions.facts import SessionFacts
from openlora.node.sessions.lane import SessionLane
from openlora.node.sessions.ledger import SessionLedger
from openlora.node.sessions.settling import Settler
from openlora.node.settlement import Signer
from openlora.node.tasks import task_group


@dataclass(frozen=True, slots=True)
class SignedLane:
    """A node's whole side of it."""

    lane: SessionLane
    settler: Settler

    async def run(self) -> None:
        """Answers and settles until cancelled."""
        async with task_group() as group:
            group.create_task(self.lane.run(), name="orders")
            group.create_task(self.settler.run(), name="settle-sessions")


def signed_lane(
    *,
    contract: Sessions,
    chain: ChainClient,
    journal: Journal,
    sender: Sender,
    facts: ChainFacts,
    answerer: Answerer,
    signer: Signer,
    confirmations: int,
    config: SessionsConfig,
    alone: Callable[[], bool],
    chain_s: Callable[[], float],
) -> SignedLane:
    """`signer` may be the queue lane's: its domain is set to this contract's. `answerer` has streams of its own."""
    signer = replace(signer, domain=Domain(signer.domain.chain_id, contract.address))
    ledger, on_chain = SessionLedger(journal), SessionFacts(chain, contract, confirmations)
    settler = Settler(contract, on_chain, ledger, sender, config)
    cashier = Cashier(ledger, Checks(on_chain), signer, config, settler.wake)
    lane = SessionLane(ledger, cashier, facts, answerer.admission, answerer, signer, config, alone, chain_s)
    return SignedLane(lane, settler)
