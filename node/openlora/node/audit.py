"""Whether every wei that the Vault holds is somebody's: tokens = balances + credits + the modules' pots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import Call
from openlora.node.deeds import Desk

BURNT: Final = to_checksum_address("0x000000000000000000000000000000000000dEaD")  # nobody claims its credits


@dataclass(frozen=True, slots=True)
class VaultAudit:
    """Token wei at one block."""

    held_wei: int  # what the token says the Vault has
    balances_wei: int
    credits: Mapping[ChecksumAddress, int]
    pots_wei: int  # in jobs, sessions, stakes and bonds

    @property
    def credits_wei(self) -> int:
        return sum(self.credits.values())

    @property
    def balanced(self) -> bool:
        return self.held_wei == self.balances_wei + self.credits_wei + self.pots_wei


async def audit_vault(desk: Desk, people: Iterable[ChecksumAddress]) -> VaultAudit:
    """Reads everything at the newest block; `people` are all who ever had an account. Raises ChainError."""
    block, vault, deployment = (await desk.chain.block("latest")).number, desk.vault, desk.deployment
    accounts = {*people, BURNT}
    modules = (deployment.node_registry, deployment.job_queue, deployment.sessions, deployment.outputs)

    async def total(calls: Iterable[Call[int]]) -> int:
        return sum([await desk.chain.call(call, block=block) for call in calls])

    return VaultAudit(
        held_wei=await total([desk.token.balance_of(vault.address)]),
        balances_wei=await total(vault.balance_of(account) for account in accounts),
        credits={account: await desk.chain.call(vault.credits_of(account), block=block) for account in accounts},
        pots_wei=await total(vault.pot_of(module) for module in (*modules, deployment.disputes)),
    )
