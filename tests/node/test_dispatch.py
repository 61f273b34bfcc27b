import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from openlora.node.dispatch import Dispatcher
from openlora.node.errors import JournalError, RpcDown
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.tasks import task_group
from openlora.node.turns import NotYet
from tests.node.facts import block, open_journal, spec, spec_hash


@dataclass
class Worker:
    """Runs a job until the test lets it go, then leaves it committed, or does as told."""

    journal: Journal
    started: list[int] = field(default_factory=list)
    running: int = 0
    most: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fails: dict[int, list[Exception]] = field(default_factory=dict)
    stays: set[int] = field(default_factory=set)

    async def run_job(self, job_id: JobId) -> None:
        self.started.append(job_id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
            if self.fails.get(job_id):
                raise self.fails[job_id].pop()
            if job_id not in self.stays:
                self.journal.move(job_id, JobState.SKIPPED, skip=SkipCode.PRICE_TOO_LOW)
        finally:
            self.running -= 1


@pytest.fixture
def journal(tmp_path) -> Iterator[Journal]:
    with open_journal(tmp_path) as opened:
        yield opened


@asynccontextmanager
async def dispatching(journal: Journal, worker: Worker, max_live: int = 8, **options: Any) -> AsyncIterator[Dispatcher]:
    duck: Any = worker
    dispatcher = Dispatcher(duck, journal, lambda: max_live, retry_s=0.02, reconsider_s=0.02, **options)
    async with task_group() as group:
        task = group.create_task(dispatcher.run())
        yield dispatcher
        task.cancel()


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.005)


def see(journal: Journal, *job_ids: int, deadline: int = 4_000_000_000) -> None:
    for job_id in job_ids:
        journal.see(JobId(job_id), spec(deadline=deadline), spec_hash(job_id), None, block(1))


async def test_each_job_runs_once_and_never_too_many_at_a_time(journal):
    see(journal, *range(1, 11))
    worker = Worker(journal)
    async with dispatching(journal, worker, max_live=3) as dispatcher:
        await until(lambda: worker.running == 3)
        dispatcher.wake()
        await asyncio.sleep(0.05)
        assert worker.most == 3
        worker.go.set()
        await until(lambda: len(worker.started) == 10)
    assert sorted(worker.started) == list(range(1, 11))
    assert worker.most == 3


async def test_a_restart_takes_up_what_holds_a_bond_first(journal):
    see(journal, 1, 2)
    journal.move(JobId(2), JobState.CLAIMING)
    journal.move(JobId(2), JobState.CLAIMED, block=block(2))
    worker = Worker(journal)
    async with dispatching(journal, worker, max_live=1):
        await until(lambda: worker.started == [2])


async def test_a_new_job_starts_when_the_journal_has_it(journal):
    worker = Worker(journal)
    async with dispatching(journal, worker) as dispatcher:
        see(journal, 1)
        dispatcher.wake()
        await until(lambda: worker.started == [1])


async def test_chain_trouble_delays_a_job_and_spares_the_others(journal):
    see(journal, 1, 2)
    worker = Worker(journal, fails={1: [RpcDown("nobody answers"), RpcDown("still nobody")]})
    worker.go.set()
    async with dispatching(journal, worker):
        await until(lambda: worker.started.count(1) == 3 and worker.started.count(2) == 1)


async def test_a_fault_in_one_job_leaves_it_alone_and_spares_the_others(journal, caplog):
    see(journal, 1)
    worker = Worker(journal, fails={1: [ZeroDivisionError(), ZeroDivisionError()]})
    worker.go.set()
    async with dispatching(journal, worker):
        await until(lambda: "event=job_error job_id=1" in caplog.text)
        see(journal, 2)
        await until(lambda: 2 in worker.started)
    assert worker.started == [1, 2]


async def test_a_contradiction_in_the_journal_ends_it(journal):
    see(journal, 1)
    worker = Worker(journal, fails={1: [JournalError("two receipts")]})
    worker.go.set()
    with pytest.raises(JournalError, match="two receipts"):
        async with dispatching(journal, worker):
            await asyncio.sleep(5)


async def test_passed_over_jobs_are_looked_at_again_all_of_them_in_turn(journal):
    see(journal, *range(1, 8))
    for job_id in range(1, 8):
        code = SkipCode.PRICE_TOO_LOW if job_id == 7 else SkipCode.TAKEN
        journal.move(JobId(job_id), JobState.SKIPPED, skip=code)
    see(journal, 8, deadline=1)
    journal.move(JobId(8), JobState.SKIPPED, skip=SkipCode.TAKEN)
    worker = Worker(journal, stays=set(range(1, 9)))
    worker.go.set()
    async with dispatching(journal, worker, max_live=2) as dispatcher:
        await until(lambda: all(worker.started.count(job_id) >= 2 for job_id in range(1, 7)))
        assert not {7, 8} & set(worker.started)
        dispatcher.terms_changed()
        await until(lambda: 7 in worker.started)
        (looks,) = {worker.started.count(7)}
        await until(lambda: worker.started.count(1) >= 6)
        assert worker.started.count(7) == looks == 1, "the price is what it was"
    assert 8 not in worker.started


@pytest.mark.parametrize("ahead_s", [10_000.0, -10_000.0])
async def test_jobs_are_looked_at_again_by_the_chains_clock(journal, ahead_s: float):
    """This machine's is hours ahead: the deadline seems past. Or behind: the other's lease seems to last."""
    chain_s = time.time() - ahead_s
    see(journal, 1, deadline=int(chain_s) + 600)
    journal.move(JobId(1), JobState.SKIPPED, skip=SkipCode.TAKEN)
    worker = Worker(journal, stays={1})
    worker.go.set()
    async with dispatching(journal, worker, chain_s=lambda: chain_s, lease_ends_at_s=lambda _: chain_s - 10):
        await until(lambda: worker.started)


async def test_a_job_under_anothers_lease_is_not_looked_at_before_its_end(journal):
    see(journal, 1, 2)
    for job_id in (1, 2):
        journal.move(JobId(job_id), JobState.SKIPPED, skip=SkipCode.TAKEN)
    leases: dict[int, float] = {1: 4e9, 2: 1.0}
    worker = Worker(journal, stays={1, 2})
    worker.go.set()
    async with dispatching(journal, worker, lease_ends_at_s=leases.get):
        await until(lambda: worker.started.count(2) >= 3)
        assert 1 not in worker.started
        leases[1] = 2.0
        await until(lambda: 1 in worker.started)


async def test_a_job_whose_turn_comes_later_runs_then(journal):
    see(journal, 1)
    worker = Worker(journal, fails={1: [NotYet(0.1)]})
    worker.go.set()
    started_s = asyncio.get_running_loop().time()
    async with dispatching(journal, worker):
        await until(lambda: journal.job(JobId(1)).state is JobState.SKIPPED)
    assert asyncio.get_running_loop().time() - started_s >= 0.1
    assert worker.started == [1, 1]


async def test_a_job_that_lacked_something_is_looked_at_again_when_it_comes(journal):
    see(journal, 1)
    journal.move(JobId(1), JobState.SKIPPED, skip=SkipCode.NOT_INVITED)
    worker = Worker(journal)
    async with dispatching(journal, worker) as dispatcher:
        await asyncio.sleep(0.1)
        assert worker.started == []
        dispatcher.look_again(JobId(1))
        await until(lambda: worker.started == [1])
