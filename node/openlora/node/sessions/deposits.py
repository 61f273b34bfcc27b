"""A client's deposits on chain: one node each."""

from collections.abc import Sequence
from dataclasses import dataclass

from openlora.contracts import Domain, Session, SessionOpened, SessionState
from openlora.node.chain.history import events, topic
from openlora.node.deeds import Deed, Desk
from openlora.node.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Deposit:
    """A session of the desk's address, as the chain sees it now."""

    id: bytes
    session: Session

    @property
    def left_wei(self) -> int:
        """Of the deposit, less what was settled; vouchers that the node holds may have taken more."""
        return self.session.deposit - self.session.settled


@dataclass(frozen=True, slots=True)
class Deposits:
    """Every method raises ChainError."""

    desk: Desk

    @property
    def domain(self) -> Domain:
        return Domain(self.desk.deployment.chain_id, self.desk.sessions.address)

    async def read(self, session_id: bytes) -> Deposit:
        return Deposit(session_id, await self.desk.chain.call(self.desk.sessions.session(session_id)))

    async def mine(self) -> Sequence[Deposit]:
        """All that the address ever opened, oldest first."""
        desk = self.desk
        topics = (SessionOpened.TOPIC, None, topic(desk.address))
        found = await events(desk.chain, desk.sessions.address, desk.deployment.block, topics=topics)
        return [await self.read(event.session_id) for event in found if isinstance(event, SessionOpened)]

    async def open_now(self, node: str | None = None) -> Sequence[Deposit]:
        """Those that orders can be charged to, with `node` where one is named; the largest rest first."""
        usable = [
            deposit
            for deposit in await self.mine()
            if deposit.session.state is SessionState.OPEN and node in (None, deposit.session.node)
        ]
        return sorted(usable, key=lambda deposit: -deposit.left_wei)

    async def named(self, text: str) -> Deposit:
        """The one whose id is, or begins with, `text`. Raises ConfigError."""
        wanted = text.lower().removeprefix("0x")
        found = [deposit for deposit in await self.mine() if wanted and deposit.id.hex().startswith(wanted)]
        if len(found) != 1:
            begin = "no session begins" if not found else f"{len(found)} sessions begin"
            raise ConfigError(f"{begin} with {text}; `openlora session status` lists those of {self.desk.address}")
        return found[0]

    async def closing(self, deposit: Deposit) -> Sequence[Deed]:
        """What brings a session to its end from where it is. Raises ConfigError while there is nothing to do."""
        match deposit.session.state:
            case SessionState.OPEN:
                return await self.desk.request_close_session(deposit.id)
            case SessionState.CLOSING:
                now_s = (await self.desk.chain.block("latest")).timestamp
                if now_s < deposit.session.close_at:
                    wait_s = deposit.session.close_at - now_s
                    raise ConfigError(f"the node may settle for another {wait_s} s; close the session again then")
                return self.desk.close_session(deposit.id)
        raise ConfigError(f"session 0x{deposit.id.hex()} is {deposit.session.state.name.lower()} already")
