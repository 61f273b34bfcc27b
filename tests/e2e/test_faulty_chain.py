"""A node whose RPC fails in every way, on a chain that reorganises: it stays up, and every job is paid once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from openlora.contracts import JobClaimed, JobCommitted, JobFinalized, JobSubmitted
from openlora.node.anvil import anvil
from openlora.node.chain.history import events
from openlora.node.devnet import ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K, Devnet
from openlora.node.documents import ChatMessage, InputDocument
from openlora.node.market import Offer, Term, open_market
from tests.e2e.agents import agent, wait_until
from tests.e2e.faulty_rpc import faulty_rpc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

JOBS = 3


def submit(net: Devnet) -> None:
    async def run() -> None:
        async with open_market(net.client_config) as client:
            recipe_id = await client.recipe(net.base_id, [Term(next(iter(net.adapters.values())))])
            for number in range(JOBS):
                document = InputDocument(v=1, messages=(ChatMessage("user", f"Tell me story {number}."),))
                await client.submit(recipe_id, document, Offer(128, 8, ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K))

    asyncio.run(run())


def history(net: Devnet) -> list[object]:
    async def run() -> list[object]:
        async with open_market(net.client_config) as client:
            return list(await events(client.chain, net.deployment.job_queue, net.deployment.block))

    return asyncio.run(run())


Kind = type[JobSubmitted] | type[JobClaimed] | type[JobCommitted] | type[JobFinalized]


def told(net: Devnet, kind: Kind) -> Counter[int]:
    """How many events of a kind the chain has, by job."""
    return Counter(event.job_id for event in history(net) if isinstance(event, kind))


def test_a_node_behind_a_faulty_rpc_is_paid_once_for_every_job(net: Devnet) -> None:
    with faulty_rpc(net.chain.rpc_url, seed=6, share=0.15) as rpc:
        node = net.nodes[0]
        node.config.write_text(node.config.read_text().replace(net.chain.rpc_url, rpc.url))
        rpc.share, share = 0.0, rpc.share
        with agent(node.folder) as process:
            submit(net)
            rpc.share = share
            wait_until(lambda: told(net, JobCommitted).total() >= JOBS, "the answers")
            # One block: a deeper one may move a claim whose receipt is signed, and such a job is rightly given back.
            asyncio.run(net.chain.rpc("anvil_reorg", 1, []))
            submitted = set(told(net, JobSubmitted))
            wait_until(lambda: set(told(net, JobFinalized)) == submitted, "the jobs' end")
            assert process.poll() is None
    for kind in (JobClaimed, JobCommitted, JobFinalized):
        assert told(net, kind) == dict.fromkeys(submitted, 1), kind.__name__
    assert len(rpc.faults) >= 8, rpc.faults


def test_a_node_goes_by_the_other_rpc_when_one_turns_to_another_chain(net: Devnet, tmp_path: Path) -> None:
    node = net.nodes[1]
    before = set(told(net, JobSubmitted))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(anvil(tmp_path / "other.log")) as other,
        faulty_rpc(net.chain.rpc_url, seed=0, share=0.0) as rpc,
    ):
        node.config.write_text(
            node.config.read_text().replace(f'"{net.chain.rpc_url}"', f'"{rpc.url}", "{net.chain.rpc_url}"')
        )
        portal.call(other.rpc, "anvil_setNonce", net.people["hot key 2"].address, hex(99))
        portal.call(other.rpc, "anvil_mine", hex(300))
        with agent(node.folder) as process:
            submit(net)
            submitted = set(told(net, JobSubmitted)) - before
            wait_until(lambda: submitted & set(told(net, JobClaimed)), "the first claim")
            rpc.turn_to(other.rpc_url)
            wait_until(lambda: submitted <= set(told(net, JobFinalized)), "the jobs' end")
            assert process.poll() is None
    for kind in (JobClaimed, JobCommitted, JobFinalized):
        assert {job_id: told(net, kind)[job_id] for job_id in submitted} == dict.fromkeys(submitted, 1), kind.__name__
    assert "event=rpc_doubted" in (node.folder / "node.log").read_text()
