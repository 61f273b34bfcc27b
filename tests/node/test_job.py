"""The arrows between a job's states."""

from dataclasses import replace

import pytest

from openlora.contracts import eip712
from openlora.node.job import LIVE, TRANSITIONS, BlockRef, Job, JobId, JobState
from tests.node.specs import some_spec


def test_every_state_has_arrows_and_few_point_at_themselves() -> None:
    assert TRANSITIONS.keys() == set(JobState)
    assert [state for state, targets in TRANSITIONS.items() if state in targets] == [
        JobState.SKIPPED,
        JobState.CLAIMED,
        JobState.FAILED,
    ]


def test_every_state_is_reachable_from_seen() -> None:
    reached, frontier = {JobState.SEEN}, [JobState.SEEN]
    while frontier:
        fresh = TRANSITIONS[frontier.pop()] - reached
        reached |= fresh
        frontier += fresh
    assert reached == set(JobState)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_a_live_job_can_still_end(state: JobState) -> None:
    assert TRANSITIONS[state]


def test_nothing_leads_back_before_a_commit() -> None:
    assert TRANSITIONS[JobState.COMMITTED] == {JobState.FINALIZED, JobState.SLASHED, JobState.ANNULLED}
    assert not TRANSITIONS[JobState.FINALIZED]


def test_the_seed_is_fixed_by_the_claim() -> None:
    job = Job(JobId(1), some_spec(), b"\x01" * 32, None, BlockRef(1, b"\x02" * 32))
    assert job.seed is None
    claimed = replace(job, claim=BlockRef(2, b"\x03" * 32))
    assert claimed.seed == eip712.job_seed(b"\x01" * 32, b"\x03" * 32)
