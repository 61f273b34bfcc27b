"""An agent's life on the fake chain: start it, kill it, start it again."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.node.chain.client import ChainClient
from openlora.node.chain.outbox import Outbox
from openlora.node.chain.rpc import Endpoint, RpcPool
from openlora.node.chain.sender import Sender, SenderOptions
from openlora.node.chain.transaction import Fees, sign
from openlora.node.chain.types import TxReceipt
from openlora.node.errors import ChainError
from openlora.node.job import Wei
from openlora.node.journal import Identity, Journal
from tests.node.chain.fake_chain import CHAIN_ID, ELSEWHERE, GWEI, QUEUE, Crash, FakeChain, FakeProvider, effect

HOT_KEY: LocalAccount = Account.from_key(b"\x01" * 32)
IDENTITY = Identity(CHAIN_ID, {"job_queue": QUEUE}, HOT_KEY.address)


class CrashingJournal(Journal):
    """`crash_in` counts down commits to the process's end, before the commit or after it."""

    crash_in: int | None = None
    crash_after = False

    def _commit(self) -> None:
        if self.crash_in is None:
            return super()._commit()
        self.crash_in -= 1
        if self.crash_in >= 0:
            return super()._commit()
        if self.crash_after:
            super()._commit()
        raise Crash


class World:
    """`client`, `journal`, `sender`, `outbox` and `provider` are the living agent's."""

    client: ChainClient
    journal: CrashingJournal
    sender: Sender
    outbox: Outbox
    provider: FakeProvider

    def __init__(self, folder: Path, *, automine: bool = False, options: SenderOptions | None = None) -> None:
        self.folder = folder
        self.chain = FakeChain(automine=automine)
        self.now = 1_000.0
        self.options = options or SenderOptions()
        self.tasks: dict[str, asyncio.Task[TxReceipt]] = {}  # sends, by key
        self.others: list[asyncio.Task[Any]] = []
        self.liars: list[FakeChain] = []  # what endpoints that are preferred show

    def open(self) -> None:
        self.provider = FakeProvider(self.chain)
        endpoints = [Endpoint(f"fake {number}", FakeProvider(liar)) for number, liar in enumerate(self.liars)]
        endpoints.append(Endpoint("fake", self.provider))
        pool = RpcPool(endpoints, CHAIN_ID, patience_s=0.0, clock=lambda: self.now)
        self.client = ChainClient(pool, CHAIN_ID)
        self.journal = CrashingJournal(self.folder, IDENTITY, clock=lambda: self.now)
        self.sender = Sender(
            self.client, self.journal, HOT_KEY, IDENTITY.contracts, self.options, clock=lambda: self.now
        )
        self.outbox = Outbox(self.journal)

    async def start(self) -> None:
        self.open()
        await self.sender.start()

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs `work` beside the test, as a part of the agent."""
        self.others.append(asyncio.create_task(work))
        return self.others[-1]

    def send(self, name: str) -> asyncio.Task[TxReceipt]:
        self.tasks[name] = asyncio.create_task(self.sender.send(name, effect(name)), name=name)
        return self.tasks[name]

    async def loop(self) -> None:
        """One look at the chain, as the sender's loop takes it: trouble with the RPC is left to the next one."""
        with suppress(ChainError):
            await self.sender.tick()

    async def settle(self) -> None:
        """Lets every task run until it waits for something that is not a request."""
        for _ in range(40):
            await asyncio.sleep(0)

    async def tick(self, times: int = 1, *, later_s: float = 0.0) -> None:
        for _ in range(times):
            self.now += later_s
            await self.settle()
            await self.sender.tick()
        await self.settle()

    async def pass_over(self, times: int = 1) -> None:
        """A block comes without the agent's transactions, and a look at it half a minute later."""
        for _ in range(times):
            self.chain.mine(full=True)
            await self.tick(later_s=31)

    async def kill(self) -> None:
        """The process ends: nothing it would still do happens."""
        self.provider.alive = False
        self.journal.close()
        tasks = [*self.tasks.values(), *self.others]
        self.tasks, self.others = {}, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    def crashed(self) -> bool:
        ended = [task for task in (*self.tasks.values(), *self.others) if task.done() and not task.cancelled()]
        return any(isinstance(task.exception(), Crash) for task in ended)


def foreign(nonce: int, *, to: str = ELSEWHERE, data: bytes = b"", gwei: int = 50) -> bytes:
    """Signed bytes of the hot key that the journal knows nothing of."""
    fees = Fees(Wei(gwei * GWEI), Wei(gwei * GWEI))
    return sign(HOT_KEY, CHAIN_ID, to=to, data=data, nonce=nonce, gas_limit=60_000, fees=fees).raw
