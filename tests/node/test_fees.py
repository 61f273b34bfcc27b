"""Fees as the contract divides them, kept in the journal and taken back with their blocks."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from openlora.contracts import Leg, Role
from openlora.node.fees import Fee, Fees, divide
from openlora.node.job import JobId
from openlora.node.journal import Journal
from openlora.node.queue_events import QueueEvents
from tests.node.facts import OPERATOR, RIVAL, block, claimed, committed, finalized, open_journal, submitted

LEGS = [Leg(RIVAL, role, bps, 0) for role, bps in ((Role.ADAPTER, 1_333), (Role.DATANET, 667), (Role.PROTOCOL, 500))]


def apply(journal: Journal, number: int, *events: object) -> None:
    with journal.transaction():
        for event in events:
            QueueEvents(journal, OPERATOR).apply(event, block(number))
            Fees(journal).apply(event, block(number))
        journal.advance(block(number))


@given(st.lists(st.integers(1_000, 2**96 - 1), min_size=1, max_size=6), st.integers(0, 2**100))
def test_no_wei_is_lost_and_one_by_one_comes_to_the_same_as_together(fees: list[int], before_wei: int) -> None:
    together = divide(LEGS, before_wei, sum(fees), OPERATOR)
    assert sum(wei for *_, wei in together) == sum(fees)
    assert together[-1][:2] == (Role.NODE, OPERATOR)
    one_by_one = [divide(LEGS, before_wei + sum(fees[:index]), fee, OPERATOR) for index, fee in enumerate(fees)]
    assert [wei for *_, wei in together] == [sum(part[leg][2] for part in one_by_one) for leg in range(len(together))]


def test_fees_of_everybody_s_jobs_add_up_by_recipe_and_are_taken_back(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        fees = Fees(journal)
        apply(journal, 1, submitted(1), submitted(2), submitted(3, recipe_id=2))
        apply(journal, 2, claimed(1), claimed(2, RIVAL), claimed(3))
        apply(journal, 3, committed(1), committed(2, RIVAL), committed(3))
        apply(journal, 4, finalized(1, fee=5))
        apply(journal, 5, finalized(2, RIVAL, fee=2**90), finalized(3, fee=11))
        assert (fees.of(JobId(1)), fees.total_wei(1)) == (Fee(JobId(1), 1, 5, 0, 4), 2**90 + 5)
        assert fees.of(JobId(2)) == Fee(JobId(2), 1, 2**90, 5, 5)
        assert fees.of(JobId(3)) == Fee(JobId(3), 2, 11, 0, 5)
        journal.unwind(4)
        assert (fees.of(JobId(2)), fees.of(JobId(3)), fees.total_wei(1), fees.total_wei(2)) == (None, None, 5, 0)


def test_a_fee_of_a_job_whose_submission_an_rpc_kept_back_is_passed_over(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        apply(journal, 1, finalized(9))
        assert Fees(journal).of(JobId(9)) is None
