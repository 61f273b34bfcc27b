"""A client's deposits on chain: one node each."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from eth_typing import ChecksumAddress

from openlora.contracts import Domain, Session, SessionOpened, Sessions, eip712
from openlora.node.chain.history import events
from openlora.node.errors import ConfigError
from openlora.node.market import Market


@dataclass(frozen=True, slots=True)
class Deposit:
    """A session of the market key's own, as the chain sees it now."""

    id: bytes
    session: Session

    @property
    def unsettled_wei(self) -> int:
        return self.session.deposit - self.session.settled


@dataclass(frozen=True, slots=True)
class Deposits:
    """Every method raises ChainError, or Reverted with the contract's reason."""

    market: Market

    @property
    def contract(self) -> Sessions:
        return Sessions(self.market.deployment.sessions)

    @property
    def domain(self) -> Domain:
        return Domain(self.market.deployment.chain_id, self.contract.address)

    async def open(self, node: ChecksumAddress, deposit_wei: int) -> bytes:
        """Puts a deposit up for `node`, from the Vault balance and then from the key's tokens. Returns its id."""
        nonce = secrets.randbits(256)
        await self._cover(deposit_wei)
        await self.market.transact(self.contract.open(node, deposit_wei, nonce))
        return eip712.session_id(self.domain, self.market.key.address, node, nonce)

    async def top_up(self, session_id: bytes, amount_wei: int) -> None:
        await self._cover(amount_wei)
        await self.market.transact(self.contract.top_up(session_id, amount_wei))

    async def request_close(self, session_id: bytes) -> None:
        await self.market.transact(self.contract.request_close(session_id))

    async def close(self, session_id: bytes) -> None:
        await self.market.transact(self.contract.close(session_id))

    async def read(self, session_id: bytes) -> Deposit:
        return Deposit(session_id, await self.market.chain.call(self.contract.session(session_id)))

    async def mine(self) -> Sequence[Deposit]:
        """All that this key ever opened, oldest first."""
        market = self.market
        found = await events(market.chain, self.contract.address, market.deployment.block)
        opened = [event for event in found if isinstance(event, SessionOpened)]
        return [await self.read(event.session_id) for event in opened if event.client == market.key.address]

    async def named(self, text: str) -> Deposit:
        """The one whose id is, or begins with, `text`. Raises ConfigError."""
        wanted = text.lower().removeprefix("0x")
        found = [deposit for deposit in await self.mine() if deposit.id.hex().startswith(wanted)]
        if len(found) != 1 or not wanted:
            counted = "no session" if not found else f"{len(found)} sessions"
            raise ConfigError(f"{counted} of this key begin with {text}; `openlora session status` lists them")
        return found[0]

    async def _cover(self, amount_wei: int) -> None:
        market = self.market
        missing_wei = amount_wei - await market.chain.call(market.vault.balance_of(market.key.address))
        if missing_wei > 0:
            await market.deposit(missing_wei)
