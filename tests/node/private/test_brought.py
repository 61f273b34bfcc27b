"""Which keys a node takes, and for how long."""

import asyncio
from dataclasses import replace

import pytest

from openlora.contracts import JobFlag
from openlora.node.errors import RequestError
from openlora.node.job import BlockRef, Job, JobId, JobState
from openlora.node.private import brought as brought_module
from tests.node.facts import spec, spec_hash
from tests.node.private.keys import KEY, brought, wrapped


def job(job_id: int = 1, flags: int = JobFlag.PRIVATE, state: JobState = JobState.SEEN) -> Job:
    return Job(JobId(job_id), spec(flags=flags), spec_hash(job_id), None, BlockRef(1, bytes(32)), state)


def test_a_key_that_came_is_there_until_it_is_forgotten():
    told: list[int] = []
    keys = brought(told=told)
    assert keys.of(job()) is None
    keys.bring(job(), wrapped())
    assert (keys.of(job()), told) == (KEY, [1])
    keys.forget(job())
    assert keys.of(job()) is None


def test_a_second_key_changes_nothing():
    """The job may have been claimed for what the first opens: a client could take the node's bond with another."""
    told: list[int] = []
    keys = brought(told=told)
    keys.bring(job(), wrapped())
    keys.bring(job(), wrapped(key=b"\x99" * 32))
    assert (keys.of(job()), told) == (KEY, [1])


def test_a_job_that_took_the_id_of_another_after_a_reorganisation_has_none():
    keys = brought()
    keys.bring(job(), wrapped())
    assert keys.of(replace(job(), spec_hash=b"\x01" * 32)) is None


@pytest.mark.parametrize("state", [JobState.COMMITTED, JobState.FINALIZED, JobState.CANCELLED])
def test_a_job_that_needs_none_is_given_none(state: JobState):
    keys = brought()
    keys.bring(job(state=state), wrapped())
    assert keys.of(job()) is None


def test_keys_for_other_jobs_or_for_public_ones_are_refused():
    keys = brought()
    with pytest.raises(RequestError, match="not wrapped for this node and this job"):
        keys.bring(job(2), wrapped(1))
    with pytest.raises(RequestError, match="job 1 is not private"):
        keys.bring(job(flags=0), wrapped())
    assert keys.of(job(2)) is None


def test_keys_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(brought_module, "MAX_KEYS", 2)
    keys = brought()
    for job_id in (1, 2, 3):
        keys.bring(job(job_id), wrapped(job_id))
    assert [keys.of(job(job_id)) for job_id in (1, 2, 3)] == [None, KEY, KEY]


async def test_whoever_waits_has_the_key_as_it_comes():
    keys = brought()
    waiting = [asyncio.ensure_future(keys.wait(job(job_id))) for job_id in (1, 2)]
    await asyncio.sleep(0)
    keys.bring(job(2), wrapped(2))
    assert await waiting[1] == KEY
    assert not waiting[0].done()
    keys.bring(job(1), wrapped(1))
    assert await waiting[0] == KEY


def test_no_key_is_shown():
    keys = brought()
    keys.bring(job(), wrapped())
    assert repr(KEY) not in repr(keys)
    assert "X25519PrivateKey" not in repr(keys)
