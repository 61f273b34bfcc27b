"""What the chain says of the node's money."""

import time
from dataclasses import dataclass
from typing import Final

from eth_typing import ChecksumAddress

from openlora.contracts import NodeRegistry, Vault
from openlora.node.admission import CLAIM_AND_COMMIT_GAS
from openlora.node.chain.client import ChainClient
from openlora.node.facts import ChainFacts
from openlora.node.telemetry.snapshot import Stake

MAX_PAYABLE_JOBS: Final = 1_000_000  # as good as any number, on chains whose gas is almost free


@dataclass(frozen=True, slots=True)
class Purse:
    """Reads one operator's stake, gas and credits."""

    chain: ChainClient
    facts: ChainFacts
    nodes: NodeRegistry
    vault: Vault
    operator: ChecksumAddress

    async def read(self) -> Stake:
        """As of the latest block. Raises ChainError."""
        funds = await self.facts.funds()
        node = await self.chain.call(self.nodes.node(self.operator))
        withdrawable_wei = await self.chain.call(self.vault.credits_of(self.operator))
        cost_wei = CLAIM_AND_COMMIT_GAS * max(1, funds.gas_price_wei)
        return Stake(
            stake_wei=str(node.stake),
            bonded_wei=str(node.bonded),
            free_wei=str(funds.free_stake_wei),
            bond_wei=str(funds.bond_wei),
            gas_wei=str(funds.gas_wei),
            gas_price_wei=str(funds.gas_price_wei),
            payable_jobs=min(MAX_PAYABLE_JOBS, funds.gas_wei // cost_wei),
            withdrawable_wei=str(withdrawable_wei),
            read_at_s=time.time(),
        )
