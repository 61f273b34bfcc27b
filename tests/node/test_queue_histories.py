"""Whatever the queue may do with a job, in whatever order, with reorganisations and our own decisions in between: the
journal takes it, and ends where the chain does."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from openlora.contracts import JobAnnulled, JobSlashed
from openlora.node.job import TRANSITIONS, BlockRef, JobId, JobState
from openlora.node.journal import Journal
from openlora.node.queue_events import QueueEvents
from tests.node.facts import (
    OPERATOR,
    RIVAL,
    cancelled,
    claimed,
    committed,
    expired,
    finalized,
    lapsed,
    open_journal,
    receipt,
    released,
    submitted,
)

HISTORIES = 60
STEPS = 14
OURS = OPERATOR
ENDS = {
    "cancelled": JobState.CANCELLED,
    "expired": JobState.EXPIRED,
    "finalized": JobState.FINALIZED,
    "slashed": JobState.SLASHED,
    "annulled": JobState.ANNULLED,
}


@dataclass
class Queue:
    """JobQueue's states of one job, and the events of each step in the contract's order."""

    state: str = "open"
    holder: str | None = None

    def steps(self, job_id: int, journal: Journal) -> list[tuple[str, str | None, list[object]]]:
        """(state, holder, events) of what may happen next."""
        node = self.holder
        over = [lapsed(job_id, node)] if node else []  # where the lease of `node` has run out
        found: list[tuple[str, str | None, list[object]]] = []
        if self.state in ("open", "claimed"):
            found += [
                ("cancelled", None, [cancelled(job_id), *over]),
                ("expired", None, [expired(job_id), *over]),
                ("claimed", RIVAL, [*over, claimed(job_id, RIVAL)]),
            ]
            if journal.job(JobId(job_id)).state is JobState.CLAIMING:
                found.append(("claimed", OURS, [*over, claimed(job_id)]))
        if self.state == "claimed" and node is not None:
            found.append(("open", None, [released(job_id, node)]))
            signed = journal.signed(JobId(job_id))
            if node != OURS:
                found.append(("committed", node, [committed(job_id, node)]))
            elif signed is not None:
                event = replace(committed(job_id), receipt_hash=signed.digest)
                found.append(("committed", node, [event]))
        if self.state == "committed" and node is not None:
            found += [
                ("finalized", None, [finalized(job_id, node)]),
                ("slashed", None, [JobSlashed(job_id=job_id, node=finalized(1, node).node, refund=1, bond=1)]),
                ("annulled", None, [JobAnnulled(job_id=job_id, node=finalized(1, node).node, refund=1)]),
            ]
        return found


@dataclass
class Life:
    dice: random.Random
    journal: Journal
    job_id: int
    base: int  # number of the block before the submission
    forks: int = 0
    chain: list[tuple[Queue, list[object]]] = field(default_factory=list)

    def block(self, height: int) -> BlockRef:
        return BlockRef(self.base + height, self.dice.randbytes(32))

    def play(self) -> None:
        listener = QueueEvents(self.journal, OPERATOR)
        self.mine(listener, Queue(), [submitted(self.job_id)])
        for _ in range(STEPS):
            if self.dice.random() < 0.4:
                self.decide()
            elif self.dice.random() < 0.2 and len(self.chain) > 1:
                del self.chain[self.dice.randrange(1, len(self.chain)) :]
                self.journal.unwind(self.base + len(self.chain))
            elif steps := self.chain[-1][0].steps(self.job_id, self.journal):
                state, holder, events = self.dice.choice(steps)
                self.mine(listener, Queue(state, holder), events)

    def mine(self, listener: QueueEvents, queue: Queue, events: list[object]) -> None:
        self.chain.append((queue, events))
        block = self.block(len(self.chain))
        with self.journal.transaction():
            for event in events:
                listener.apply(event, block)
        expected = ENDS.get(queue.state)
        if expected in (JobState.CANCELLED, JobState.EXPIRED) or (expected and self.chain[-2][0].holder == OURS):
            assert self.journal.job(JobId(self.job_id)).state is expected

    def decide(self) -> None:
        """What the worker may do by itself."""
        job = self.journal.job(JobId(self.job_id))
        if job.state is JobState.CLAIMED and self.dice.random() < 0.6:
            if job.signed is None:
                self.journal.record_receipt(job.id, self.dice.randbytes(32), msgspec.json.encode(receipt(self.job_id)))
            return
        for state in (JobState.CLAIMING, JobState.LOST, JobState.FAILED):
            if state in TRANSITIONS[job.state] and self.dice.random() < 0.5:
                if state is JobState.CLAIMING and job.signed is not None:
                    continue
                self.journal.move(job.id, state, reason="why" if state is JobState.FAILED else None)
                return


def test_no_history_of_the_queue_contradicts_the_journal(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for seed in range(HISTORIES):
            Life(random.Random(seed), journal, seed + 1, base=100 * seed).play()
