"""SIGKILL at the worst moments: the job is finished once, by the same node, with the same receipt."""

import asyncio
import os
import signal
import sqlite3
import time

import pytest

from openlora.contracts import JobClaimed, JobCommitted, JobFinalized
from openlora.node import agent_client
from openlora.node.chain.history import events
from openlora.node.devnet import ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K, BLOCK_TIME_S, Devnet
from openlora.node.documents import ChatMessage, InputDocument, JobSampling
from openlora.node.market import Offer, Term, open_market
from tests.e2e.agents import agent, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]


def journal_state(net: Devnet, job_id: int) -> str | None:
    with sqlite3.connect(f"file:{net.nodes[0].folder}/journal.sqlite?mode=ro", uri=True) as db:
        found = db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return found[0] if found else None


def receipts(net: Devnet, job_id: int) -> list[tuple[bytes, bytes]]:
    with sqlite3.connect(f"file:{net.nodes[0].folder}/journal.sqlite?mode=ro", uri=True) as db:
        return db.execute("SELECT digest, signature FROM receipts WHERE job_id = ?", (job_id,)).fetchall()


def submit(net: Devnet) -> int:
    async def run() -> int:
        async with open_market(net.client_config) as client:
            recipe_id = await client.recipe(net.base_id, [Term(next(iter(net.adapters.values())))])
            document = InputDocument(
                v=1, messages=(ChatMessage("user", "Tell me a long story."),), sampling=JobSampling(ignore_eos=True)
            )
            offer = Offer(128, 64, ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K)
            return (await client.submit(recipe_id, document, offer)).job_id

    return asyncio.run(run())


def chain_events(net: Devnet, job_id: int) -> list[object]:
    async def run() -> list[object]:
        async with open_market(net.client_config) as client:
            found = await events(client.chain, net.deployment.job_queue, net.deployment.block)
        return [event for event in found if getattr(event, "job_id", None) == job_id]

    return asyncio.run(run())


def rpc(net: Devnet, method: str, *params: object) -> object:
    return asyncio.run(net.chain.rpc(method, *params))


@pytest.mark.parametrize("moment", ["claim", "generation", "commit", "commit dropped"])
def test_a_killed_node_finishes_its_job_exactly_once(net: Devnet, moment: str):
    with agent(net.nodes[0].folder) as process:
        if moment == "claim":
            job_id = submit(net)
            rpc(net, "evm_setIntervalMining", 0)  # the claim stays in the pool
            wait_until(lambda: journal_state(net, job_id) in ("claiming", "claimed"), "the claim")
        else:
            job_id = submit(net)
            text = agent_client.watch(net.nodes[0].socket, job_id)
            wait_until(lambda: next(text)[1], "the first token")
            if moment != "generation":
                rpc(net, "evm_setIntervalMining", 0)
                rpc(net, "evm_mine")  # a commit comes in a later block than its claim
                wait_until(lambda: journal_state(net, job_id) == "committing" and receipts(net, job_id), "the receipt")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    signed_before = [row for row in receipts(net, job_id) if row[1]]
    if moment == "commit dropped":
        rpc(net, "anvil_dropAllTransactions")
    rpc(net, "evm_setIntervalMining", BLOCK_TIME_S)

    restarted_s = time.monotonic()
    with agent(net.nodes[0].folder):
        recovered_s = time.monotonic() - restarted_s
        wait_until(lambda: journal_state(net, job_id) == "finalized", "the job's end")

    history = chain_events(net, job_id)
    for kind in (JobClaimed, JobCommitted, JobFinalized):
        assert sum(isinstance(event, kind) for event in history) == 1, kind.__name__
    assert len(receipts(net, job_id)) == 1
    assert set(signed_before) <= set(receipts(net, job_id))
    assert recovered_s < 60, f"{recovered_s:.1f} s"
