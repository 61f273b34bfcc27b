"""What dashboards read: pages of jobs, histories, receipts to the wei, earnings over time; all follow the chain."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from openlora.contracts import AdapterRegistered, Paid, Role
from openlora.node.errors import RequestError
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.telemetry.history import KEPT, sample
from tests.node.dashboard.world import ADAPTERS, BASE_ID, DEVELOPERS, OLRA, PROVIDER, USE_FEE_WEI, digest, world
from tests.node.facts import OPERATOR, claimed


async def test_jobs_come_in_pages_newest_first(tmp_path: Path):
    async with world(tmp_path) as shown:
        for job_id in range(1, 8):
            shown.submit(job_id)
        for job_id, code in ((2, SkipCode.LOW_DISK), (5, SkipCode.PRICE_TOO_LOW)):
            shown.scene.journal.move(JobId(job_id), JobState.SKIPPED, skip=code)
        pages, before = [], None
        while page := shown.board.jobs(3, before):
            pages.append([job.job_id for job in page.jobs])
            if (before := page.next_before) is None:
                break
        assert pages == [[7, 6, 5], [4, 3, 2], [1]]
        assert [job.job_id for job in shown.board.jobs(9, state=JobState.SKIPPED).jobs] == [5, 2]
        assert [job.job_id for job in shown.board.jobs(9, skip=SkipCode.PRICE_TOO_LOW).jobs] == [5]
        assert [job.job_id for job in shown.board.jobs(9, before=5, state=JobState.SEEN).jobs] == [4, 3, 1]


async def test_a_job_s_history_is_what_the_chain_still_says(tmp_path: Path):
    async with world(tmp_path) as shown:
        shown.register()
        shown.submit(1, recipe_id=2)
        shown.apply(claimed(1))
        detail = shown.board.job(JobId(1))
        assert [(step.state, step.block_number) for step in detail.history] == [("seen", 19), ("claimed", 20)]
        assert [(term.name, term.weight) for term in detail.recipe or ()] == [("pirate", 0.7), ("haiku", 0.3)]
        shown.scene.reorganise(1)
        assert [step.state for step in shown.board.job(JobId(1)).history] == ["seen"]
        with pytest.raises(RequestError, match="not in the journal"):
            shown.board.job(JobId(9))


async def test_a_receipt_s_parts_are_what_the_chain_paid(tmp_path: Path):
    """Every job's parts, summed by role and payee, are the chain's own payments, to the wei."""
    async with world(tmp_path) as shown:
        shown.register()
        fees = {job_id: (2 + job_id % 2, OLRA // 1_000 + 7 * job_id) for job_id in range(1, 6)}
        for job_id, (recipe_id, fee_wei) in fees.items():
            shown.submit(job_id, recipe_id)
            shown.answer(job_id, recipe_id, fee_wei)
        foreseen = await shown.board.receipt(JobId(1))
        for job_id, (recipe_id, fee_wei) in fees.items():
            shown.pay(job_id, recipe_id, fee_wei)
        found: Counter[tuple[str, str]] = Counter()
        for job_id, (_, fee_wei) in fees.items():
            view = await shown.board.receipt(JobId(job_id))
            assert (view.paid, view.fee_wei) == (True, str(fee_wei))
            assert sum(int(part.amount_wei) for part in view.parts) == fee_wei + int(view.use_fee_wei)
            found.update({(part.role, part.payee): int(part.amount_wei) for part in view.parts})
        assert found == {(role.name.lower(), payee): wei for (role, payee), wei in shown.paid_by.items()}
        first = await shown.board.receipt(JobId(1))
        assert not foreseen.paid
        assert foreseen.parts == first.parts, "nothing of its recipe was paid in between"
        by_role = {(part.role, part.payee): part for part in first.parts}
        developer = by_role["adapter", DEVELOPERS[1]]
        assert (developer.names, developer.terms[0].weight) == (("haiku",), 0.7)
        assert by_role["datanet", PROVIDER].names == ("shanties",)
        assert by_role["node", OPERATOR].names == ()
        assert (by_role["use", DEVELOPERS[2]].names, first.use_fee_wei) == (("json",), str(USE_FEE_WEI))
        shown.submit(9)
        with pytest.raises(RequestError, match="signed no receipt"):
            await shown.board.receipt(JobId(9))


async def test_earnings_over_time_follow_the_blocks_times(tmp_path: Path):
    async with world(tmp_path) as shown:
        board = shown.board
        for amount, at_s in ((5, 100_000), (6, 100_050), (7, 103_700), (2**90, 107_300)):
            shown.apply(Paid(OPERATOR, Role.NODE, 1, amount), Paid(OPERATOR, Role.DATANET, 1, 1))
            shown.scene.journal.time_payments(shown.scene.journal.cursor.number, at_s)
        shown.apply(Paid(OPERATOR, Role.NODE, 1, 1_000))
        object.__setattr__(board, "clock", lambda: 107_999.0)
        found = await board.earnings(3_600, 3)
        assert (found.since_s, found.paid_wei) == (97_200, str(2**90 + 1_022))
        assert {bucket.start_s: bucket.paid_by_role_wei for bucket in found.buckets} == {
            97_200: {"node": "11", "datanet": "2"},
            100_800: {"node": "7", "datanet": "1"},
            104_400: {"node": str(2**90), "datanet": "1"},
        }
        assert shown.scene.journal.untimed_payment_blocks(9) == [5]
        await shown.scene.observer._time_payments()
        assert shown.scene.journal.untimed_payment_blocks(9) == []
        shown.scene.reorganise(3)
        assert [bucket.paid_by_role_wei for bucket in (await board.earnings(3_600, 3)).buckets] == [
            {"node": "11", "datanet": "2"}
        ]


async def test_names_are_known_from_the_chain_cut_and_taken_back(tmp_path: Path):
    async with world(tmp_path) as shown:
        shown.register()
        assert [shown.board.name_of("0x" + digest(number).hex()) for number in range(8)] == list(ADAPTERS)
        shown.apply(AdapterRegistered(b"\xee" * 32, BASE_ID, DEVELOPERS[0], "x" * 1_000_000))
        assert shown.board.name_of("0x" + "ee" * 32) == "x" * 64
        shown.scene.reorganise(1)
        assert shown.board.name_of("0x" + "ee" * 32) is None


async def test_graphs_keep_half_an_hour(tmp_path: Path):
    async with world(tmp_path) as shown:
        shown.board.history.samples.extend([sample(await shown.observe(), at_s) for at_s in range(KEPT + 5)])
        view = shown.board.history.view()
        assert {len(column) for column in view.columns.values()} == {KEPT}
        assert view.columns["at_s"] == list(range(5, KEPT + 5))
        assert msgspec.json.encode(view)
