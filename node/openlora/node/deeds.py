"""What people do with their money on chain, as transactions that nobody has signed yet.

A deed is one transaction and one plain sentence of what it does. Whoever has the key carries deeds out in their order;
whoever keeps it elsewhere is given them to sign there.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress

from openlora.contracts import (
    Access,
    AdapterRegistry,
    Call,
    Deployment,
    DevToken,
    Domain,
    HotKeyConsent,
    JobQueue,
    JobSpec,
    Node,
    NodeRegistry,
    Outputs,
    Receipt,
    Sessions,
    Settlement,
    Vault,
    eip712,
)
from openlora.node.chain.client import ChainClient
from openlora.node.chain.transaction import gas_limit_of
from openlora.node.chain.types import to_hex
from openlora.node.errors import ChainError, ConfigError, Reverted
from openlora.node.wei import tokens

WHOM: Final = {Access.PUBLIC: "everyone", Access.ALLOW_LIST: "those on its list", Access.PAY_PER_USE: "who pays"}
CONSENT_S: Final = 3_600  # a consent given now is good for so long
UNSIGNED_CONSENT_S: Final = 7 * 86_400  # and one whose transaction is signed elsewhere
LATER_GAS: Final = 400_000  # of a transaction that cannot be simulated before those ahead of it, generously


@dataclass(frozen=True, slots=True)
class Deed:
    call: Call[Any]
    does: str


def stopped(error: ChainError, done: Sequence[Deed]) -> ChainError:
    """`error`, which kept the rest of some deeds from being carried out, with a word of those that are `done`."""
    if done:
        deposited = any(deed.call.name == "Vault.deposit" for deed in done)
        hint = "; `openlora withdraw balance` takes out again what lies in the Vault" if deposited else ""
        error.args = (f"{error}; done before: {', '.join(deed.does for deed in done)}{hint}",)
    return error


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A transaction as wallets take it; `gas` is a limit. Deeds are to be sent in their order."""

    sender: ChecksumAddress
    to: ChecksumAddress
    data: str
    value: int
    chain_id: int
    gas: int
    does: str

    def as_json(self) -> dict[str, object]:
        names = {"sender": "from", "chain_id": "chainId"}
        return {names.get(name, name): getattr(self, name) for name in self.__slots__}


class Desk:
    """Draws up deeds of one address. Every method raises ChainError, or ConfigError for what cannot be meant."""

    def __init__(self, chain: ChainClient, deployment: Deployment, address: ChecksumAddress) -> None:
        self.chain = chain
        self.deployment = deployment
        self.address = address
        self.token = DevToken(deployment.token)
        self.vault = Vault(deployment.vault)
        self.nodes = NodeRegistry(deployment.node_registry)
        self.sessions = Sessions(deployment.sessions)
        self.outputs = Outputs(deployment.outputs)
        self.registry = AdapterRegistry(deployment.adapter_registry)
        self.queue = JobQueue(deployment.job_queue)

    # ---- the vault ----

    def deposit(self, amount_wei: int) -> list[Deed]:
        """Tokens of the address's own, into its Vault balance."""
        amount = f"{tokens(amount_wei)} OLRA"
        return [
            Deed(self.token.approve(self.vault.address, amount_wei), f"allow the Vault to take {amount}"),
            Deed(self.vault.deposit(self.address, amount_wei), f"deposit {amount} in the Vault"),
        ]

    async def cover(self, amount_wei: int) -> list[Deed]:
        """What brings the Vault balance up to `amount_wei`, if anything. Raises ConfigError for want of tokens."""
        balance_wei = await self.balance()
        if balance_wei >= amount_wei:
            return []
        own_wei = await self.chain.call(self.token.balance_of(self.address))
        if balance_wei + own_wei < amount_wei:
            raise ConfigError(
                f"{tokens(amount_wei)} OLRA are needed, and {self.address} has {tokens(balance_wei)} in the Vault and"
                f" {tokens(own_wei)} beside it; get more, or offer less"
            )
        return self.deposit(amount_wei - balance_wei)

    async def covered(self, amount_wei: int, deed: Deed) -> list[Deed]:
        """`deed`, which locks `amount_wei` of the Vault balance, after what brings that up to it. Raises Reverted where
        it would be refused for another reason than the balance, before anything is deposited for it."""
        before = await self.cover(amount_wei)
        try:
            await self.chain.call(deed.call, sender=self.address)
        except Reverted as refusal:
            if not before or refusal.name != "InsufficientBalance":
                raise
        return [*before, deed]

    async def balance(self) -> int:
        """The Vault balance, which is neither earned nor at stake."""
        return await self.chain.call(self.vault.balance_of(self.address))

    async def credits(self) -> int:
        """What was earned and not withdrawn."""
        return await self.chain.call(self.vault.credits_of(self.address))

    async def withdraw_credits(self, to: ChecksumAddress) -> list[Deed]:
        amount_wei = await self.credits()
        does = f"send {tokens(amount_wei)} OLRA of earnings to {to}"
        return [Deed(self.vault.claim_credits(to), does)] if amount_wei else []

    async def withdraw_balance(self, to: ChecksumAddress, amount_wei: int | None = None) -> list[Deed]:
        """All of it, unless an amount is named."""
        amount_wei = await self.balance() if amount_wei is None else amount_wei
        does = f"send {tokens(amount_wei)} OLRA of the Vault balance to {to}"
        return [Deed(self.vault.withdraw(to, amount_wei), does)] if amount_wei else []

    # ---- stake and keys ----

    async def stake(self, amount_wei: int) -> list[Deed]:
        return await self.covered(amount_wei, self._stake(amount_wei))

    def _stake(self, amount_wei: int) -> Deed:
        return Deed(self.nodes.stake(amount_wei), f"put {tokens(amount_wei)} OLRA at stake")

    async def unstake(self, amount_wei: int) -> list[Deed]:
        delay_s = await self.chain.call(self.nodes.unstake_delay_secs())
        does = f"take {tokens(amount_wei)} OLRA out of the stake; they can be withdrawn {delay_s} s later"
        return [Deed(self.nodes.begin_unstake(amount_wei), does)]

    async def withdraw_stake(self) -> list[Deed]:
        """What has left the stake, into the Vault balance."""
        leaving_wei = (await self.chain.call(self.nodes.node(self.address))).unstaking
        does = f"move {tokens(leaving_wei)} OLRA that have left the stake to the Vault balance"
        return [Deed(self.nodes.withdraw_stake(), does)] if leaving_wei else []

    async def consent(self, hot_key: LocalAccount, life_s: int = CONSENT_S) -> HotKeyConsent:
        """The hot key's signature that it serves this operator, good for long enough to be mined."""
        domain = Domain(self.deployment.chain_id, self.nodes.address)
        deadline = (await self.chain.block("latest")).timestamp + life_s
        return eip712.hot_key_consent(bytes(hot_key.key), domain, self.address, deadline)

    async def register(self, consent: HotKeyConsent, encryption_key: bytes, stake_wei: int) -> list[Deed]:
        """Makes the address an operator with this hot key, the X25519 public key that goes with it, and at least this
        stake; takes up what was interrupted."""
        known = await self.chain.call(self.nodes.node(self.address))
        deeds = []
        if int(known.hot_key, 16) == 0:
            register = self.nodes.register(consent, encryption_key, bytes(32), b"")
            deeds.append(Deed(register, f"register as an operator with the hot key {consent.key}"))
        else:
            if known.hot_key != consent.key:
                deeds.append(self._set_hot_key(consent))
            deeds += self._set_encryption_key(known, encryption_key)
        if stake_wei > known.stake:
            more_wei = stake_wei - known.stake
            deeds += [*await self.cover(more_wei), self._stake(more_wei)]
        return deeds

    async def rotate_hot_key(self, consent: HotKeyConsent, encryption_key: bytes) -> list[Deed]:
        """What is under way stays the operator's: the new key commits it."""
        known = await self.chain.call(self.nodes.node(self.address))
        more = f"; {known.live_claims} jobs that are not final go on with it" if known.live_claims else ""
        return [self._set_hot_key(consent, more), *self._set_encryption_key(known, encryption_key)]

    def _set_hot_key(self, consent: HotKeyConsent, more: str = "") -> Deed:
        does = f"make {consent.key} the hot key in place of the present one{more}"
        return Deed(self.nodes.set_hot_key(consent), does)

    def _set_encryption_key(self, known: Node, encryption_key: bytes) -> list[Deed]:
        """Nothing where the registry has it."""
        if known.encryption_key == encryption_key:
            return []
        metadata = self.nodes.set_metadata(encryption_key, known.metadata, known.peer_id)
        return [Deed(metadata, "register the encryption key to which clients wrap the keys of private jobs")]

    # ---- sessions ----

    async def open_session(self, node: ChecksumAddress, deposit_wei: int) -> tuple[bytes, list[Deed]]:
        """A deposit for `node` alone; the session's id is known before it is opened."""
        nonce = secrets.randbits(256)
        domain = Domain(self.deployment.chain_id, self.sessions.address)
        does = f"open a session with {node} and deposit {tokens(deposit_wei)} OLRA for it"
        deeds = await self.covered(deposit_wei, Deed(self.sessions.open(node, deposit_wei, nonce), does))
        return eip712.session_id(domain, self.address, node, nonce), deeds

    async def top_up_session(self, session_id: bytes, amount_wei: int) -> list[Deed]:
        does = f"add {tokens(amount_wei)} OLRA to the deposit of session {to_hex(session_id)}"
        return await self.covered(amount_wei, Deed(self.sessions.top_up(session_id, amount_wei), does))

    async def request_close_session(self, session_id: bytes) -> list[Deed]:
        delay_s = await self.chain.call(self.sessions.close_delay_secs())
        does = f"ask to close session {to_hex(session_id)}; the node has {delay_s} s to settle, then it can be closed"
        return [Deed(self.sessions.request_close(session_id), does)]

    def close_session(self, session_id: bytes) -> list[Deed]:
        does = f"close session {to_hex(session_id)}: the rest of its deposit returns to the Vault balance"
        return [Deed(self.sessions.close(session_id), does)]

    # ---- jobs ----

    async def take_back(self, job_id: int, spec: JobSpec) -> list[Deed]:
        """Ends a job that no node holds: its client at any time, anybody once its deadline has passed."""
        refunded = f"all that was put up for it returns to the Vault balance of {spec.client}"
        if spec.client != self.address and (await self.chain.block("latest")).timestamp > spec.deadline:
            return [Deed(self.queue.expire(job_id, spec), f"expire job {job_id}: {refunded}")]
        return [Deed(self.queue.cancel(job_id, spec), f"cancel job {job_id}: {refunded}")]

    async def demand_output(self, job_id: int, receipt: Receipt, settlement: Settlement) -> list[Deed]:
        """The node that committed the job publishes its output in time, and has the bond; or loses its own."""
        bond_wei = await self.chain.call(self.outputs.bond_for(receipt.out_tokens))
        does = f"demand the output of job {job_id} with a bond of {tokens(bond_wei)} OLRA"
        demand = self.outputs.demand_output(job_id, settlement, receipt)
        return await self.covered(bond_wei, Deed(demand, does))

    # ---- adapters ----

    def set_access(self, digest: bytes, access: Access, use_fee_wei: int) -> list[Deed]:
        fee = f" at {tokens(use_fee_wei)} OLRA a job" if use_fee_wei else ""
        does = f"serve adapter {to_hex(digest)} to {WHOM[access]}{fee}"
        return [Deed(self.registry.set_access(digest, access, use_fee_wei), does)]

    def allow(self, digest: bytes, accounts: Sequence[ChecksumAddress], allowed: bool) -> list[Deed]:
        does = f"{'let' if allowed else 'no longer let'} {', '.join(accounts)} use adapter {to_hex(digest)}"
        return [Deed(self.registry.allow(digest, list(accounts), allowed), does)]

    def take_down(self, digest: bytes) -> list[Deed]:
        does = f"take adapter {to_hex(digest)} down for good: no new job may use it"
        return [Deed(self.registry.take_down(digest), does)]

    # ---- to be signed elsewhere ----

    async def unsigned(self, deeds: Sequence[Deed]) -> list[Unsigned]:
        """Raises Reverted when the first would revert now; those after it build on it and cannot be tried."""
        drafts = []
        for number, deed in enumerate(deeds):
            call = deed.call
            try:
                estimate = await self.chain.estimate_gas(call.to, call.data, self.address, name=call.name)
                gas = gas_limit_of(estimate)
            except Reverted:
                if number == 0:
                    raise
                gas = LATER_GAS
            drafts.append(Unsigned(self.address, call.to, to_hex(call.data), 0, self.chain.chain_id, gas, deed.does))
        return drafts
