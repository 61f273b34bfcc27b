from collections.abc import Iterator

import msgspec
import pytest

from openlora.contracts import Receipt
from openlora.node.fees import Fees
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.queue_events import QueueEvents
from tests.node.facts import (
    OPERATOR,
    RIVAL,
    block,
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

JOB = JobId(1)


@pytest.fixture
def journal(tmp_path) -> Iterator[Journal]:
    with open_journal(tmp_path) as opened:
        yield opened


def tell(journal: Journal, *events: object, first_block: int = 1) -> JobState:
    """Applies one event a block and returns the job's state."""
    listener = QueueEvents(journal, OPERATOR)
    for number, event in enumerate(events, start=first_block):
        with journal.transaction():
            listener.apply(event, block(number))
    return journal.job(JOB).state


def test_our_own_job_from_the_queue_to_its_fee(journal):
    assert tell(journal, submitted(1)) is JobState.SEEN
    journal.move(JOB, JobState.CLAIMING)
    assert tell(journal, claimed(1), first_block=2) is JobState.CLAIMED
    assert journal.job(JOB).claim == block(2)
    journal.record_receipt(JOB, b"\x0f" * 32, msgspec.json.encode(receipt(1)))
    assert tell(journal, committed(1), finalized(1), first_block=3) is JobState.FINALIZED


def test_what_the_worker_recorded_first_is_no_contradiction(journal):
    tell(journal, submitted(1))
    journal.move(JOB, JobState.CLAIMING)
    journal.move(JOB, JobState.CLAIMED, block=block(2))
    journal.record_receipt(JOB, b"\x0f" * 32, b"{}")
    assert tell(journal, claimed(1), first_block=2) is JobState.COMMITTING
    journal.move(JOB, JobState.COMMITTED, block=block(3))
    assert tell(journal, committed(1), first_block=3) is JobState.COMMITTED


def test_a_lost_journal_is_rebuilt_with_its_receipts(journal):
    assert tell(journal, submitted(1), claimed(1), committed(1)) is JobState.COMMITTED
    signed = journal.signed(JOB)
    assert signed is not None
    assert msgspec.json.decode(signed.receipt, type=Receipt) == receipt(1)
    assert tell(journal, finalized(1), first_block=4) is JobState.FINALIZED


def test_the_receipt_we_stand_by_is_never_replaced(journal):
    tell(journal, submitted(1), claimed(1))
    journal.record_receipt(JOB, b"\x01" * 32, b"{}")
    listener = QueueEvents(journal, OPERATOR)
    listener.apply(committed(1), block(3))  # the chain's receipt is another one: ours stays, the fact is recorded
    signed = journal.signed(JOB)
    assert signed is not None
    assert signed.digest == b"\x01" * 32


@pytest.mark.parametrize("end", [cancelled(1), expired(1)])
def test_an_open_job_may_end_without_us(journal, end):
    state = tell(journal, submitted(1), end)
    assert state in (JobState.CANCELLED, JobState.EXPIRED)


def test_a_job_that_a_rival_takes_is_skipped_and_may_come_back(journal):
    assert tell(journal, submitted(1), claimed(1, RIVAL)) is JobState.SKIPPED
    assert journal.job(JOB).skip is SkipCode.TAKEN
    assert tell(journal, lapsed(1, RIVAL), claimed(1), first_block=3) is JobState.CLAIMED


def test_a_job_that_a_rival_has_answered_is_over(journal):
    tell(journal, submitted(1), claimed(1, RIVAL), committed(1, RIVAL))
    assert journal.job(JOB).skip is SkipCode.ANSWERED
    journal.unwind(2)
    assert journal.job(JOB).skip is SkipCode.TAKEN


def test_losing_the_race_for_a_claim(journal):
    tell(journal, submitted(1))
    journal.move(JOB, JobState.CLAIMING)
    assert tell(journal, claimed(1, RIVAL), first_block=2) is JobState.LOST


@pytest.mark.parametrize(("event", "state"), [(lapsed(1), JobState.LOST), (released(1), JobState.FAILED)])
def test_a_claim_that_ends_is_over_and_can_be_cancelled_by_its_client(journal, event, state):
    assert tell(journal, submitted(1), claimed(1), event) is state
    assert tell(journal, cancelled(1), first_block=4) is JobState.CANCELLED


def test_a_released_failure_keeps_its_reason_whoever_tells_first(journal):
    tell(journal, submitted(1), claimed(1))
    journal.move(JOB, JobState.FAILED, reason="the adapter is refused")
    assert tell(journal, released(1), first_block=3) is JobState.FAILED
    tell(journal, submitted(2), claimed(2), released(2))
    journal.move(JobId(2), JobState.FAILED, reason="the adapter is refused")
    assert [journal.job(JobId(number)).reason for number in (1, 2)] == ["the adapter is refused"] * 2


def test_what_rivals_do_with_their_jobs_is_not_ours(journal):
    state = tell(journal, submitted(1), claimed(1, RIVAL), committed(1, RIVAL), finalized(1, RIVAL))
    assert state is JobState.SKIPPED
    assert journal.signed(JOB) is None


@pytest.mark.parametrize("event", [claimed(7), claimed(7, RIVAL), committed(7), finalized(7), cancelled(7), lapsed(7)])
def test_a_job_whose_submission_an_rpc_kept_back_is_passed_over(journal, event):
    tell(journal, submitted(1), event)
    Fees(journal).apply(event, block(2))
    assert journal.find(JobId(7)) is None


def test_a_reorganisation_takes_a_claim_back(journal):
    tell(journal, submitted(1))
    journal.move(JOB, JobState.CLAIMING)
    tell(journal, claimed(1), first_block=2)
    journal.unwind(1)
    assert journal.job(JOB).state is JobState.CLAIMING
    assert tell(journal, claimed(1), first_block=3) is JobState.CLAIMED
    assert journal.job(JOB).claim == block(3)


def test_a_claim_that_moves_before_its_receipt_moves_the_seed(journal):
    tell(journal, submitted(1), claimed(1))
    seed = journal.job(JOB).seed
    journal.unwind(1)
    assert tell(journal, claimed(1), first_block=3) is JobState.CLAIMED
    assert journal.job(JOB).seed not in (None, seed)


def test_a_claim_that_the_worker_saw_in_a_block_which_is_gone(journal):
    tell(journal, submitted(1))
    journal.move(JOB, JobState.CLAIMING)
    journal.move(JOB, JobState.CLAIMED, block=block(2))  # from the sender's receipt; the cursor never came there
    assert tell(journal, claimed(1), first_block=3) is JobState.CLAIMED
    assert journal.job(JOB).claim == block(3)


@pytest.mark.parametrize("moved_to", [2, 3], ids=["the same block come back", "another one"])
def test_a_claim_that_comes_back_after_its_receipt_leaves_the_queue_to_judge_it(journal, moved_to):
    tell(journal, submitted(1), claimed(1))
    signed = journal.record_receipt(JOB, b"\x01" * 32, b"{}").signed
    journal.unwind(1)
    assert tell(journal, claimed(1), first_block=moved_to) is JobState.COMMITTING
    assert journal.signed(JOB) == signed
    assert tell(journal, committed(1), first_block=4) is JobState.COMMITTED


def test_a_claim_that_moves_after_we_gave_the_job_up_stays_given_up(journal):
    tell(journal, submitted(1), claimed(1))
    journal.move(JOB, JobState.FAILED, reason="the adapter is refused")
    journal.unwind(1)
    assert tell(journal, claimed(1), first_block=3) is JobState.FAILED
