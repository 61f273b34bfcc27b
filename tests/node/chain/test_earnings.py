"""What a node is paid, by role, through reorganisations of a real chain: journal, events and Vault agree."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from eth_account import Account

from openlora.contracts import Access, Domain, Settlement, eip712
from openlora.node.anvil import Anvil, anvil
from openlora.node.books import Books
from openlora.node.chain.client import ChainClient
from openlora.node.chain.follower import Batch, Follower
from openlora.node.chain.history import market_events
from openlora.node.content import BlockContent
from openlora.node.deploying import deploy
from openlora.node.devnet import OLRA, PARAMS, settings_of
from openlora.node.documents import InputDocument, OutputDocument, Usage
from openlora.node.fees import Fees
from openlora.node.journal import Identity, Journal
from openlora.node.market import Market, Offer, Term
from openlora.node.queue_events import QueueEvents
from openlora.node.settlement import Signer

pytestmark = pytest.mark.slow

BASE_ID, ADAPTER = b"\x01" * 32, b"\x02" * 32
OUTPUT = OutputDocument(v=1, text="Ahoy", token_ids=(1,), finish_reason="stop", usage=Usage(7, 9))
OFFER = Offer(100, 50, 333, 777)  # fees that no share divides evenly
JOBS = 5


@dataclass(frozen=True, slots=True)
class Stage:
    """Committed jobs whose windows have passed. The operator owns base and adapter, too, so that every role is its."""

    chain: Anvil
    operator: Market
    jobs: dict[int, Settlement]

    async def finalize(self, *job_ids: int) -> None:
        batch = [self.jobs[job_id] for job_id in job_ids]
        await self.operator.transact(self.operator.queue.finalize_batch(job_ids, batch))


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Stage]:
    async with anvil(folder / "anvil.log") as chain:
        client = await ChainClient.connect([chain.rpc_url], chain.chain_id)
        try:
            protocol, operator, hot, buyer = (Account.from_key(key) for key in chain.private_keys[:4])
            deployment = await deploy(client, protocol, settings_of(protocol))
            content = BlockContent(folder / "content")
            node, agent, submitter = (Market(client, deployment, key, content) for key in (operator, hot, buyer))
            for person in (node, submitter):
                await person.transact(person.token.mint(person.key.address, 1_000 * OLRA))
            await node.register_node(hot, 100 * OLRA)
            await node.register_base(BASE_ID, "base")
            await node.transact(node.registry.register_adapter(ADAPTER, BASE_ID, [], "adapter"))
            await node.carry_out(node.desk.set_access(ADAPTER, Access.PAY_PER_USE, 41))
            recipe_id = await node.recipe(BASE_ID, [Term(ADAPTER)])
            jobs = {}
            for _ in range(JOBS):
                job_id, settlement = await _committed(chain, agent, submitter, recipe_id, node.key.address)
                jobs[job_id] = settlement
            await chain.rpc("evm_increaseTime", PARAMS.window_secs + 1)
            await chain.rpc("evm_mine")
            yield Stage(chain, node, jobs)
        finally:
            await client.close()


async def _committed(
    chain: Anvil, agent: Market, submitter: Market, recipe_id: int, operator: str
) -> tuple[int, Settlement]:
    job = await submitter.submit(recipe_id, InputDocument(v=1, prompt="Hello"), OFFER)
    claimed = await agent.transact(agent.queue.claim(job.job_id, job.spec))
    await chain.rpc("evm_mine")  # the claim's block has a hash from the next one on
    domain = Domain(agent.chain.chain_id, agent.queue.address)
    spec_hash = eip712.spec_digest(domain, job.spec)
    signer = Signer(domain, operator, agent.key, 1)
    work_id = eip712.work_id(agent.queue.address, job.job_id)
    seed, now_s = eip712.job_seed(spec_hash, claimed.block.hash), (await agent.chain.block("latest")).timestamp
    receipt = signer.receipt(job.spec, OUTPUT, work_id, spec_hash, seed, now_s)
    await agent.transact(agent.queue.commit(job.job_id, job.spec, eip712.answer_of(receipt)))
    return job.job_id, eip712.settlement_of(job.spec, receipt, eip712.receipt_digest(domain, receipt))


async def test_earnings_by_role_through_reorganisations(tmp_path: Path):
    """Payments that are taken back come again in another order and other batches, which round differently."""
    async with opened(tmp_path) as stage:
        me, deployment = stage.operator, stage.operator.deployment
        identity = Identity.of(deployment, me.key.address)
        with Journal(tmp_path / "state", identity) as journal:
            events, fees = QueueEvents(journal, me.key.address), Fees(journal)
            follower = Follower(me.chain, journal, [deployment.job_queue], deployment.block)

            def apply(batch: Batch) -> None:
                for occurrence in batch.events:
                    events.apply(occurrence.event, occurrence.block)
                    fees.apply(occurrence.event, occurrence.block)

            async def agree() -> int:
                while await follower.step(apply) is not None:
                    pass
                by_role = {role: wei for role, (_, wei) in journal.paid().items()}
                assert by_role == await me.earned()
                assert sum(by_role.values()) == await me.desk.credits()
                recipe_id = next(iter(stage.jobs.values())).recipe_id
                assert fees.total_wei(recipe_id) == await me.chain.call(me.queue.recipe_fees(recipe_id))
                assert Books.of(await market_events(me.chain, deployment)).balanced
                return by_role.get("use", 0)

            first, *others = stage.jobs
            assert await agree() == 0
            await stage.finalize(first)
            await stage.finalize(*others[:2])
            assert await agree() == 3 * 41
            await stage.chain.rpc("anvil_reorg", 2, [])
            assert await agree() == 0, "nothing was paid on this chain"
            await stage.finalize(others[1], first)
            assert await agree() == 2 * 41
            await stage.finalize(others[0])
            await stage.chain.rpc("anvil_reorg", 1, [])
            await stage.finalize(*reversed(others[2:]), others[0])
            assert await agree() == JOBS * 41
