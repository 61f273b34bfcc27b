"""What is committed is paid once its window is over, though a question moved the window's end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openlora.contracts import AdapterRegistry, Call, Job, JobQueue, NodeRegistry
from openlora.contracts import JobState as OnChain
from openlora.node.chain.types import Block, Wei
from openlora.node.errors import GasTooDear, Reverted, RpcDown, RpcError
from openlora.node.facts import ChainFacts
from openlora.node.finalizer import Finalizer
from openlora.node.job import JobId, JobState
from openlora.node.journal import Journal
from openlora.node.settlement import Settlement
from openlora.node.tasks import running
from tests.node.facts import OPERATOR, RIVAL, block, open_journal, receipt, spec, spec_hash

FIRST, SECOND = JobId(1), JobId(2)
QUEUE = JobQueue(RIVAL)


@dataclass
class Chain:
    """A clock and jobs that the test sets; the looks at it are counted."""

    now_s: int = 1_000
    jobs: dict[int, Job] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)  # of the next looks at the clock
    looks: int = 0  # at the clock
    readings: int = 0  # of jobs
    looked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def block(self, tag: str) -> Block:
        async with self.looked:
            self.looks += 1
            self.looked.notify_all()
        if self.failures:
            raise self.failures.pop(0)
        return Block(7, bytes(32), bytes(32), self.now_s, Wei(1))

    async def call(self, call: Call[Any]) -> Job:
        self.readings += 1
        return self.jobs[int.from_bytes(call.data[4:36], "big")]

    async def looked_again(self, times: int = 2) -> None:
        """Once a look that began after this call is over, and so what came of it."""
        async with asyncio.timeout(5), self.looked:
            enough = self.looks + times
            await self.looked.wait_for(lambda: self.looks >= enough)


@dataclass
class Transactions:
    """A sender that sends what it was never given before."""

    sent: list[str] = field(default_factory=list)
    reverts: list[str] = field(default_factory=list)  # of the next sends

    journal: Journal | None = None  # where what is paid is finalized at once
    most: int = 99  # jobs that a block has gas for
    poison: set[str] = field(default_factory=set)  # jobs that revert their transaction
    dear: bool = False  # gas is, above the cap

    def finalized(self) -> set[str]:
        return {job_id for key in self.sent for job_id in key.split(":")[1].split(",")}

    async def send(self, key: str, call: Call[Any]) -> None:
        if self.dear:
            raise GasTooDear("gas costs too much")
        ids = set(key.split(":")[1].split(","))
        if len(ids) > self.most:
            raise RpcError(-32000, "gas required exceeds allowance (30000000)", None)
        if ids & self.poison:
            raise Reverted("SettlementMismatch", "refused")
        if self.reverts:
            raise Reverted(self.reverts.pop(0), "refused")
        if key not in self.sent:
            self.sent.append(key)
        for job_id in ids if self.journal is not None else ():
            self.journal.move(JobId(int(job_id)), JobState.FINALIZED, block=block(9))


@dataclass
class Scene:
    finalizer: Finalizer
    chain: Chain
    transactions: Transactions
    journal: Journal

    def commit(self, job_id: JobId, **on_chain: Any) -> None:
        self.journal.see(job_id, spec(), spec_hash(job_id), None, block(1))
        self.journal.move(job_id, JobState.CLAIMING)
        self.journal.move(job_id, JobState.CLAIMED, block=block(2))
        self.journal.record_receipt(job_id, spec_hash(job_id), msgspec.json.encode(receipt(job_id)))
        self.journal.move(job_id, JobState.COMMITTED, block=block(3))
        self.stands(job_id, **on_chain)

    def stands(self, job_id: JobId, state: OnChain = OnChain.COMMITTED, until: int = 0) -> None:
        self.chain.jobs[job_id] = Job(bytes(32), bytes(32), OPERATOR, state, 1, 0, until, 2, 0)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    chain, transactions = Chain(), Transactions()
    any_chain: Any = chain
    sender: Any = transactions
    unsigned: Any = None  # nothing is signed here
    facts = ChainFacts(any_chain, QUEUE, NodeRegistry(RIVAL), AdapterRegistry(RIVAL), OPERATOR, OPERATOR)
    with open_journal(tmp_path) as journal:
        finalizer = Finalizer(Settlement(QUEUE, unsigned, journal, sender), any_chain, facts, poll_s=0.001)
        async with running(finalizer.run(), "finalizer"):
            yield Scene(finalizer, chain, transactions, journal)


async def test_a_job_is_paid_when_its_window_is_over(scene: Scene):
    scene.commit(FIRST, until=1_003)
    await scene.chain.looked_again()
    readings = scene.chain.readings
    await scene.chain.looked_again()
    assert (scene.transactions.sent, scene.chain.readings) == ([], readings), "an open window is not read at every look"
    scene.chain.now_s = 1_003
    await scene.chain.looked_again()
    assert scene.transactions.sent == ["finalize:1:1"]


async def test_a_job_that_a_question_held_is_paid_after_its_answer_without_a_restart(scene: Scene):
    scene.commit(FIRST, state=OnChain.HELD, until=900)
    await scene.chain.looked_again()
    assert scene.transactions.sent == []
    scene.stands(FIRST, until=1_010)
    await scene.chain.looked_again()
    assert scene.transactions.sent == [], "the window goes on from where it stood"
    scene.chain.now_s = 1_010
    await scene.chain.looked_again()
    assert scene.transactions.sent == ["finalize:1:1"]


@pytest.mark.parametrize("state", [OnChain.CLAIMED, OnChain.FINALIZED])
async def test_what_the_chain_shows_otherwise_costs_no_gas(scene: Scene, state: OnChain):
    scene.commit(FIRST, state=state, until=0)
    scene.commit(SECOND, until=999)
    await scene.chain.looked_again()
    assert scene.transactions.sent == ["finalize:2:1"]


async def test_a_window_that_was_held_meanwhile_is_waited_for(scene: Scene):
    scene.commit(FIRST, until=1_003)
    await scene.chain.looked_again()
    scene.stands(FIRST, until=1_050)
    scene.chain.now_s = 1_003
    await scene.chain.looked_again()
    assert scene.transactions.sent == []
    scene.chain.now_s = 1_050
    await scene.chain.looked_again()
    assert scene.transactions.sent == ["finalize:1:1"]


async def test_a_held_job_does_not_keep_others_waiting(scene: Scene):
    scene.commit(FIRST, state=OnChain.HELD)
    scene.commit(SECOND, until=999)
    await scene.chain.looked_again()
    assert scene.transactions.sent == ["finalize:2:1"]


async def test_a_job_that_nobody_can_finalize_and_too_many_at_once_keep_no_others_waiting(scene: Scene):
    scene.transactions.journal = scene.journal
    scene.transactions.most, scene.transactions.poison = 4, {"3"}
    for job_id in range(1, 20):
        scene.commit(JobId(job_id), until=999)
    others = {str(job_id) for job_id in range(1, 20)} - {"3"}
    async with asyncio.timeout(5):
        while scene.transactions.finalized() != others:  # noqa: ASYNC110 - what is waited for is the code under test's
            await asyncio.sleep(0.01)


async def test_trouble_with_the_chain_delays_it_only(scene: Scene):
    scene.transactions.reverts = ["WindowOpen"]
    scene.chain.failures = [RpcDown("nobody answers")]
    scene.commit(FIRST, until=999)
    await scene.chain.looked_again(times=4)
    assert scene.transactions.sent == ["finalize:1:2"], "another transaction than the one that reverted"


async def test_dear_gas_is_asked_for_and_told_of_more_and_more_seldom(scene: Scene, caplog: pytest.LogCaptureFixture):
    scene.transactions.dear, scene.finalizer._most = True, 1
    scene.commit(FIRST, until=999)
    scene.commit(SECOND, until=999)
    started_s = asyncio.get_running_loop().time()
    await scene.chain.looked_again(times=8)
    assert asyncio.get_running_loop().time() - started_s >= sum(0.001 * 2**pause for pause in range(6))
    assert caplog.text.count("settlement_waits") <= scene.chain.looks
    scene.transactions.dear = False
    await scene.chain.looked_again()
    assert scene.transactions.finalized() == {"1", "2"}
