"""Sender and follower on a real chain and the real contracts. The effect counted is a mint: one unit an intent."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.contracts import (
    Call,
    Deployment,
    DevToken,
    DisputeTerms,
    JobQueue,
    MarketSettings,
    OutputTerms,
    Params,
    Vault,
    deployment_of,
    deployment_steps,
)
from openlora.node.anvil import Anvil, anvil
from openlora.node.chain.client import ChainClient
from openlora.node.chain.follower import Batch, Follower
from openlora.node.chain.outbox import Outbox
from openlora.node.chain.sender import Sender, SenderOptions
from openlora.node.chain.transact import create, transact, transfer
from openlora.node.errors import ChainError, JournalError, Reverted, WrongChain
from openlora.node.job import Wei
from openlora.node.journal import Identity, Journal
from tests.e2e.faulty_rpc import faulty_rpc

pytestmark = pytest.mark.slow

COIN = 10**18
OUTPUT_TERMS = OutputTerms(answer_secs=10, bond=0, bond_per_token=0, max_out_tokens=8_192)
DISPUTE_TERMS = DisputeTerms(0, 0, 0, draw_secs=10, commit_secs=20, reveal_secs=20, round_secs=1, audit_bps=500)
PARAMS = Params(bond=0, max_live_claims=8, window_secs=1, max_lease_secs=3600, max_duration_secs=86_400)
OPTIONS = SenderOptions(poll_s=0.05, resend_after_s=0.3, bump_after_s=600)


class Stage:
    """A chain with the market on it, and an agent of which only the sender and the follower live."""

    def __init__(self, chain: Anvil, client: ChainClient, deployment: Deployment, folder: Path) -> None:
        self.chain, self.client, self.deployment, self.folder = chain, client, deployment, folder
        self.options = OPTIONS
        self.owner: LocalAccount = Account.from_key(chain.private_keys[0])
        self.hot: LocalAccount = Account.from_key(b"\x07" * 32)
        self.token = DevToken(deployment.token)
        self.queue = JobQueue(deployment.job_queue)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[tuple[Sender, Journal]]:
        """A sender that has started and whose loop runs."""
        identity = Identity.of(self.deployment, self.hot.address)
        with Journal(self.folder, identity) as journal:
            sender = Sender(self.client, journal, self.hot, identity.contracts, self.options)
            await sender.start()
            loop = asyncio.create_task(sender.run())
            try:
                yield sender, journal
            finally:
                loop.cancel()
                with suppress(asyncio.CancelledError, JournalError):
                    await loop

    def mint(self) -> Call[None]:
        return self.token.mint(self.hot.address, 1)

    async def minted(self) -> int:
        return await self.client.call(self.token.balance_of(self.hot.address))

    async def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            await self.chain.rpc("evm_mine")

    async def pooled(self) -> list[str]:
        pool = await self.chain.rpc("txpool_content")
        assert isinstance(pool, dict)
        ours = pool["pending"].get(self.hot.address.lower(), {})
        return [tx["hash"] for tx in ours.values()]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with anvil(tmp_path / "anvil.log") as chain:
        client = await ChainClient.connect([chain.rpc_url], chain.chain_id)
        try:
            owner: LocalAccount = Account.from_key(chain.private_keys[0])
            settings = MarketSettings(
                owner=owner.address,
                guardian=owner.address,
                treasury=owner.address,
                params=PARAMS,
                timelock_s=0,
                close_delay_s=60,
                unstake_delay_s=60,
                output_terms=OUTPUT_TERMS,
                dispute_terms=DISPUTE_TERMS,
            )
            steps = deployment_steps(owner.address, 0, settings)
            for step in steps:
                receipt = await create(client, owner, step.data, step.name)
                assert receipt.contract_address == step.address.lower()
            deployment = deployment_of(steps, settings, chain_id=chain.chain_id, block=0)
            stage = Stage(chain, client, deployment, tmp_path / "state")
            await transfer(client, owner, stage.hot.address, COIN)
            yield stage
        finally:
            await client.close()


def hash_of(journal: Journal, key: str) -> str:
    """Of an intent's newest bytes."""
    return "0x" + Outbox(journal).attempts(key)[0].signed.hash.hex()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Asks the chain until the answer is true: a chain outside this process tells nobody."""
    async with asyncio.timeout(10):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


# ---- client ---------------------------------------------------------------------------------------------------------


async def test_connecting_checks_the_chain_and_the_deployment(stage: Stage) -> None:
    url, chain_id = stage.chain.rpc_url, stage.chain.chain_id
    client = await ChainClient.connect(["http://127.0.0.1:9", url], chain_id, stage.deployment)
    assert client.chain_id == chain_id
    await client.close()
    with pytest.raises(WrongChain, match="no configured RPC serves chain 5"):
        await ChainClient.connect([url], 5)
    with pytest.raises(ChainError, match="has no job queue at"):
        await ChainClient.connect([url], chain_id, replace(stage.deployment, job_queue=stage.hot.address))


async def test_a_revert_carries_the_contracts_reason(stage: Stage) -> None:
    with pytest.raises(Reverted, match=r"JobQueue.release: job 1 is none") as raised:
        await stage.client.call(stage.queue.release(1), sender=stage.hot.address)
    assert raised.value.name == "WrongState"
    with pytest.raises(Reverted):
        await transact(stage.client, stage.owner, stage.queue.release(1))


# ---- sender ---------------------------------------------------------------------------------------------------------


async def test_sixty_intents_at_once_are_sixty_effects(stage: Stage) -> None:
    async with stage.agent() as (sender, _):
        receipts = await asyncio.gather(*(sender.send(f"mint:{n}", stage.mint()) for n in range(60)))
    assert await stage.minted() == 60
    assert len({receipt.tx_hash for receipt in receipts}) == 60


async def test_a_transaction_dropped_by_the_pool_goes_again_as_the_same_bytes(stage: Stage) -> None:
    await stage.chain.rpc("evm_setAutomine", False)
    async with stage.agent() as (sender, journal):
        sending = asyncio.create_task(sender.send("mint", stage.mint()))
        await until(stage.pooled)
        tx_hash = hash_of(journal, "mint")
        await stage.chain.rpc("anvil_dropTransaction", tx_hash)
        assert await stage.pooled() == []
        await until(stage.pooled)
        await stage.mine()
        assert "0x" + (await sending).tx_hash.hex() == tx_hash
    assert await stage.minted() == 1


async def test_after_a_restart_the_same_bytes_go_again(stage: Stage) -> None:
    await stage.chain.rpc("evm_setAutomine", False)
    async with stage.agent() as (sender, journal):
        sending = asyncio.create_task(sender.send("mint", stage.mint()))
        await until(stage.pooled)
        tx_hash = hash_of(journal, "mint")
        sending.cancel()
    await stage.chain.rpc("anvil_dropTransaction", tx_hash)
    async with stage.agent() as (sender, _):
        await until(stage.pooled)
        await stage.mine()
        assert "0x" + (await sender.send("mint", stage.mint())).tx_hash.hex() == tx_hash
    assert await stage.minted() == 1


async def test_a_rising_base_fee_is_outbid(stage: Stage) -> None:
    await stage.chain.rpc("evm_setAutomine", False)
    stage.options = SenderOptions(poll_s=0.05, outbid_after_s=0.5)
    async with stage.agent() as (sender, journal):
        sending = asyncio.create_task(sender.send("mint", stage.mint()))
        async with asyncio.timeout(30):
            await until(stage.pooled)
            first = Outbox(journal).attempts("mint")[-1].signed
            while not sending.done():
                # anvil mines only what pays the base fee of the block
                await stage.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(first.fees.max_fee_wei + 10**9))
                await stage.mine()
                await asyncio.sleep(0.1)
        receipt = await sending
        assert receipt.tx_hash != first.hash
        assert len(Outbox(journal).attempts("mint")) >= 2
    assert await stage.minted() == 1


@pytest.mark.parametrize("depth", [1, 3, 20])
async def test_a_reorganised_transaction_goes_again_as_the_same_bytes(stage: Stage, depth: int) -> None:
    async with stage.agent() as (sender, journal):
        first = await sender.send("mint", stage.mint())
        await stage.mine(depth - 1)
        await stage.chain.rpc("anvil_reorg", depth, [])
        await until(stage.minted)
        assert len(Outbox(journal).attempts("mint")) == 1
        again = await sender.send("mint", stage.mint())
        assert again.tx_hash == first.tx_hash
    assert await stage.minted() == 1


async def test_a_second_agent_with_the_same_key_stops_us(stage: Stage) -> None:
    vault = Vault(stage.deployment.vault)
    async with stage.agent() as (sender, _):
        await sender.send("mint", stage.mint())
        await transact(stage.client, stage.hot, vault.claim_credits(stage.owner.address))
        with pytest.raises(JournalError, match="called vault with the hot key"):
            await until(lambda: refused(sender, stage))


async def refused(sender: Sender, stage: Stage) -> bool:
    await sender.send("mint", stage.mint())
    return False


async def test_coin_moved_by_hand_is_survived(stage: Stage) -> None:
    async with stage.agent() as (sender, journal):
        await sender.send("mint:1", stage.mint())
        await transfer(stage.client, stage.hot, stage.owner.address, 10**15)
        await sender.send("mint:2", stage.mint())
        assert Outbox(journal).is_foreign(1)
    assert await stage.minted() == 2


async def test_an_empty_purse_is_said(stage: Stage) -> None:
    await stage.chain.rpc("anvil_setBalance", stage.hot.address, hex(Wei(1000)))
    async with stage.agent() as (sender, _):
        with pytest.raises(ChainError, match="top it up"):
            await sender.send("mint", stage.mint())


# ---- follower -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain_id", [31_337, 31_338], ids=["under the same id", "under another id"])
async def test_an_rpc_that_turns_to_another_chain_is_passed_over(stage: Stage, tmp_path: Path, chain_id: int) -> None:
    """Where the hot key's past is another, and none of the blocks are ours."""
    minted: list[int] = []  # in blocks
    real, hot = stage.chain, stage.hot.address

    def note(batch: Batch) -> None:
        minted[:] = [number for number in minted if number <= batch.upto.number]
        minted.extend(occurrence.block.number for occurrence in batch.events)

    async with AsyncExitStack() as stack:
        rpc = stack.enter_context(faulty_rpc(real.rpc_url, seed=0, share=0.0))
        stage.client = await ChainClient.connect([rpc.url, real.rpc_url], real.chain_id)
        stack.push_async_callback(stage.client.close)
        async with anvil(tmp_path / "other.log", chain_id=chain_id) as other, stage.agent() as (sender, journal):
            follower = Follower(stage.client, journal, [stage.deployment.token], 0, poll_s=0.05)
            await sender.send("one", stage.mint())
            await follower.catch_up(note)
            await other.rpc("anvil_setNonce", hot, hex(7))
            await other.rpc("anvil_mine", hex(300))
            rpc.turn_to(other.rpc_url)
            await stage.mine()
            async with asyncio.timeout(20):
                await follower.catch_up(note)
                assert (await sender.send("two", stage.mint())).succeeded
                await follower.catch_up(note)
            assert len(minted) == await stage.minted() == 2
            assert journal.cursor == (await stage.client.block("latest")).ref
            assert Outbox(journal).next_nonce() == 2


async def test_the_follower_sees_the_tokens_mints_through_a_reorganisation(stage: Stage, tmp_path: Path) -> None:
    seen: list[int] = []  # blocks with a transfer, on the canonical chain

    def apply(batch: Batch) -> None:
        if batch.unwound:
            seen[:] = [number for number in seen if number <= batch.upto.number]
        seen.extend(occurrence.block.number for occurrence in batch.events)

    identity = Identity.of(stage.deployment, stage.hot.address)
    with Journal(tmp_path / "follower", identity) as journal:
        follower = Follower(stage.client, journal, [stage.deployment.token], 0, poll_s=0.02, live_blocks=8)

        async def catch_up() -> None:
            while await follower.step(apply) is not None:
                pass

        for _ in range(12):
            await transact(stage.client, stage.owner, stage.mint())
        await catch_up()
        assert len(seen) == 12
        head = (await stage.client.block("latest")).number
        await stage.chain.rpc("anvil_reorg", 4, [])
        await transact(stage.client, stage.owner, stage.mint())
        await catch_up()
        assert seen == [*range(head - 11, head - 3), head + 1]
        assert await stage.minted() == len(seen)


# ---- sudden deaths --------------------------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from pathlib import Path
from eth_account import Account
from openlora.contracts import Deployment, DevToken
from openlora.node.chain.client import ChainClient
from openlora.node.chain.sender import Sender, SenderOptions
from openlora.node.journal import Identity, Journal

async def main(url, folder, deployment, count):
    deployment = Deployment.from_json(Path(deployment).read_text())
    account = Account.from_key(bytes([7]) * 32)
    client = await ChainClient.connect([url], deployment.chain_id, deployment)
    identity = Identity.of(deployment, account.address)
    with Journal(Path(folder), identity) as journal:
        options = SenderOptions(poll_s=0.02, resend_after_s=0.5, max_in_flight=4)
        sender = Sender(client, journal, account, identity.contracts, options)
        await sender.start()
        asyncio.get_running_loop().create_task(sender.run())
        print("started", flush=True)
        call = DevToken(deployment.token).mint(account.address, 1)
        await asyncio.gather(*(sender.send(f"mint:{n}", call) for n in range(int(count))))
        print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_killed_again_and_again_loses_and_doubles_nothing(stage: Stage, tmp_path: Path) -> None:
    dice = random.Random(11)
    document = tmp_path / "deployment.json"
    document.write_text(stage.deployment.to_json())
    await stage.chain.rpc("evm_setAutomine", False)
    await stage.chain.rpc("evm_setIntervalMining", 1)
    count, deaths = 200, 0
    while True:
        arguments = (stage.chain.rpc_url, str(stage.folder), str(document), str(count))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"started\n"
        if deaths < 8:
            await asyncio.sleep(dice.uniform(0.0, 0.6))  # where it dies is the point
            child.send_signal(signal.SIGKILL)
            await child.wait()
            deaths += 1
            continue
        async with asyncio.timeout(120):
            assert await child.stdout.readline() == b"done\n"
        await child.wait()
        break
    assert await stage.minted() == count
