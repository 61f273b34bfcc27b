"""The journal: what it refuses, what survives, what a reorganisation takes back."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from openlora.node import journal as journal_module
from openlora.node.chain.outbox import Outbox
from openlora.node.chain.transaction import Fees, SignedTransaction
from openlora.node.chain.types import TxReceipt
from openlora.node.errors import JournalError, JournalUnwritable, RpcBehind
from openlora.node.job import BlockRef, JobId, JobState, SkipCode, Wei
from openlora.node.journal import Identity, Journal
from tests.node.damage import clear_first_page
from tests.node.specs import some_spec

OURS = Identity(31337, {"job_queue": "0x" + "Aa" * 20}, "0x" + "01" * 20)
JOB = JobId(17)


def at(number: int, fork: int = 0) -> BlockRef:
    return BlockRef(number, bytes([fork]) + number.to_bytes(31, "big"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path, OURS, clock=lambda: 1000.0) as opened:
        yield opened


def see(journal: Journal, job_id: JobId = JOB, block: BlockRef = at(5)) -> None:  # noqa: B008 - a frozen value
    journal.see(job_id, some_spec(), b"\x77" * 32, b"{}", block)


def claim(journal: Journal, job_id: JobId = JOB, block: BlockRef = at(6)) -> None:  # noqa: B008 - a frozen value
    journal.move(job_id, JobState.CLAIMING)
    journal.move(job_id, JobState.CLAIMED, block=block)


# ---- opening --------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    with Journal(tmp_path, OURS) as journal:
        see(journal)
        claim(journal)
        written = journal.record_receipt(JOB, b"d" * 32, b"receipt")
        journal.advance(at(6))
    with Journal(tmp_path, OURS) as journal:
        assert journal.job(JOB) == written
        assert journal.cursor == at(6)
        assert written.spec == some_spec()
        assert written.seed is not None


def test_another_process_with_the_same_folder_is_refused_by_name(journal: Journal, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from openlora.node.journal import Identity, Journal\n"
        "Journal(Path(sys.argv[1]), Identity(31337, {}, '0x' + '01' * 20))"
    )
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert f"another agent (process {os.getpid()}) uses {tmp_path}" in child.stderr


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    Journal(tmp_path, OURS).close()
    Journal(tmp_path, OURS).close()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(OURS, chain_id=1), "chain id 31337, not 1"),
        (replace(OURS, hot_key="0x" + "02" * 20), "hot key 0x01"),
        (replace(OURS, contracts={"job_queue": "0x" + "bb" * 20}), "contract job_queue 0xaa"),
    ],
)
def test_a_journal_of_another_identity_is_refused_by_name(tmp_path: Path, other: Identity, named: str) -> None:
    Journal(tmp_path, OURS).close()
    with pytest.raises(JournalError, match=named):
        Journal(tmp_path, other)
    Journal(tmp_path, OURS).close()  # and the refusal released the lock


def test_an_operators_journal_goes_on_under_its_next_hot_key(tmp_path: Path) -> None:
    """Jobs and receipts stay; what the last key signed for the chain is void, and what it cost is not forgotten."""
    first = replace(OURS, operator="0x" + "Cc" * 20)
    second = replace(first, hot_key="0x" + "02" * 20)
    with Journal(tmp_path, first) as journal:
        see(journal)
        claim(journal)
        written = journal.record_receipt(JOB, b"d" * 32, b"receipt")
        outbox = Outbox(journal)
        journal.set_meta("first nonce", "5")
        for nonce, key in enumerate(("claim", "commit"), 5):
            signed = SignedTransaction(bytes([nonce]) * 32, nonce, b"raw", Fees(Wei(1), Wei(1)))
            outbox.begin(key, "0x" + "aa" * 20, b"", 100, signed)
        outbox.set_mined("claim", TxReceipt(b"\x05" * 32, at(6), True, 7, Wei(1), None, ()), final=False)
    with Journal(tmp_path, second) as journal:
        outbox = Outbox(journal)
        assert journal.job(JOB) == written
        assert (outbox.unsettled(), outbox.find("commit"), outbox.next_nonce()) == ([], None, 0)
        assert outbox.gas_cost_wei() == 7
        journal.unwind(1)
        assert outbox.unsettled() == [], "no reorganisation brings it back"
    for stranger in (replace(second, operator="0x" + "dd" * 20), replace(OURS, hot_key="0x" + "03" * 20)):
        with pytest.raises(JournalError, match="use another state folder"):
            Journal(tmp_path, stranger)


def test_a_deployment_may_grow(tmp_path: Path) -> None:
    Journal(tmp_path, OURS).close()
    Journal(tmp_path, replace(OURS, contracts={**OURS.contracts, "disputes": "0x" + "cc" * 20})).close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, OURS).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute(f"PRAGMA user_version = {len(journal_module.MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(JournalError, match="upgrade this program"):
        Journal(tmp_path, OURS)


def test_an_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path, OURS).close()
    second = "CREATE TABLE later (x INTEGER) STRICT;"
    monkeypatch.setattr(journal_module, "MIGRATIONS", (*journal_module.MIGRATIONS, second))
    with Journal(tmp_path, OURS) as journal:
        assert journal.rows("SELECT * FROM later") == []
        assert journal.meta("chain id") == "31337"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no database, and long enough to look like one" * 40)
    with pytest.raises(JournalError, match="restore it from a backup"):
        Journal(tmp_path, OURS)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET spec = x'7b7d'",
        "UPDATE jobs SET state = 'seem'",
        "UPDATE jobs SET reason = CAST(x'ff' AS TEXT)",
        "UPDATE transitions SET state = 'seem'",
        "UPDATE transitions SET skip = 'x'",
    ],
)
def test_a_damaged_row_is_told_of(tmp_path: Path, damage: str) -> None:
    with Journal(tmp_path, OURS) as journal:
        see(journal)
        with journal.transaction() as db:
            db.execute(damage)

        def look() -> None:
            for job in journal.page(limit=10):
                journal.transitions(job.id)

        with pytest.raises(JournalError, match=r"is damaged: .*; restore it from a backup") as caught:
            look()
        assert not isinstance(caught.value, JournalUnwritable), "waiting would not mend it"


def test_a_page_that_goes_bad_under_an_open_journal_is_damage(tmp_path: Path) -> None:
    with Journal(tmp_path, OURS) as journal:
        for number in range(1, 200):
            journal.advance(at(number))
    clear_first_page(tmp_path / "journal.sqlite", "blocks")
    with Journal(tmp_path, OURS) as journal, pytest.raises(JournalError, match="is damaged") as caught:
        journal.known_blocks()
    assert not isinstance(caught.value, JournalUnwritable)


def test_a_disk_that_refuses_is_no_reason_to_restore(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(JournalUnwritable, match="free disk space or check the disk"):
        Journal(tmp_path, OURS)


# ---- transactions ---------------------------------------------------------------------------------------------------


def test_an_error_takes_everything_back(journal: Journal) -> None:
    def half() -> None:
        with journal.transaction():
            see(journal)
            journal.advance(at(5))
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert journal.find(JOB) is None
    assert journal.cursor is None


async def test_a_transaction_that_awaits_is_found_out(journal: Journal) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def careless() -> None:
        with journal.transaction():
            entered.set()
            await leave.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(careless())
        await entered.wait()
        with pytest.raises(AssertionError, match="awaited"):
            see(journal)
        leave.set()


def test_a_full_disk_is_said_and_changes_nothing(journal: Journal) -> None:
    journal.rows("PRAGMA max_page_count = 1")
    with pytest.raises(JournalUnwritable, match="cannot be used: database or disk is full"):
        journal.see(JOB, some_spec(), b"\x77" * 32, b"x" * 200_000, at(5))
    journal.rows("PRAGMA max_page_count = 100000")
    assert journal.find(JOB) is None
    journal.probe()


# ---- jobs -----------------------------------------------------------------------------------------------------------


def test_a_missing_arrow_is_refused(journal: Journal) -> None:
    see(journal)
    with pytest.raises(JournalError, match="job 17 is seen and cannot become committed"):
        journal.move(JOB, JobState.COMMITTED, block=at(6))
    assert journal.job(JOB).state is JobState.SEEN


def test_a_skip_says_why_and_may_be_decided_anew(journal: Journal) -> None:
    see(journal)
    assert journal.move(JOB, JobState.SKIPPED, skip=SkipCode.LOW_DISK).skip is SkipCode.LOW_DISK
    assert journal.move(JOB, JobState.CLAIMING).skip is None


def test_history_is_kept_in_order(journal: Journal) -> None:
    see(journal)
    claim(journal)
    journal.move(JOB, JobState.FAILED, reason="engine died")
    history = journal.transitions(JOB)
    assert [step.state for step in history] == [JobState.SEEN, JobState.CLAIMING, JobState.CLAIMED, JobState.FAILED]
    assert [step.block for step in history] == [at(5), None, at(6), None]
    assert history[-1].reason == "engine died"


def test_jobs_are_listed_by_state(journal: Journal) -> None:
    for number in (1, 2, 3):
        see(journal, JobId(number))
    journal.move(JobId(2), JobState.SKIPPED, skip=SkipCode.TAKEN)
    assert [job.id for job in journal.jobs(JobState.SEEN)] == [1, 3]
    assert [job.id for job in journal.jobs(newest_first=True, limit=2)] == [3, 2]
    assert journal.counts()[JobState.SEEN] == 2


# ---- receipts -------------------------------------------------------------------------------------------------------


def test_a_second_receipt_is_never_recorded(journal: Journal) -> None:
    see(journal)
    claim(journal)
    journal.record_receipt(JOB, b"a" * 32, b"first")
    assert journal.record_receipt(JOB, b"a" * 32, b"first").state is JobState.COMMITTING
    with pytest.raises(JournalError, match="never signed"):
        journal.record_receipt(JOB, b"b" * 32, b"second")
    with pytest.raises(JournalError, match="record it before signing"):
        journal.record_signature(JOB, b"b" * 32, b"s" * 65)
    signed = journal.record_signature(JOB, b"a" * 32, b"s" * 65).signed
    assert signed is not None
    assert (signed.receipt, signed.signature) == (b"first", b"s" * 65)


def test_a_job_with_a_receipt_is_never_claimed_again(journal: Journal) -> None:
    see(journal)
    claim(journal)
    journal.record_receipt(JOB, b"a" * 32, b"first")
    journal.move(JOB, JobState.LOST, block=at(9))
    with pytest.raises(JournalError, match="signed receipt"):
        journal.move(JOB, JobState.CLAIMING)


def test_a_receipt_outlives_its_job(journal: Journal) -> None:
    see(journal)
    claim(journal)
    journal.record_receipt(JOB, b"a" * 32, b"first")
    journal.unwind(4)
    journal.see(JOB, some_spec(2), b"\x78" * 32, None, at(5, fork=1))  # another spec took the id
    assert journal.job(JOB).state is JobState.SEEN
    with pytest.raises(JournalError, match="signed receipt"):
        journal.move(JOB, JobState.CLAIMING)
    journal.move(JOB, JobState.CLAIMED, block=at(6, fork=1))
    with pytest.raises(JournalError, match="never signed"):
        journal.record_receipt(JOB, b"b" * 32, b"second")


def test_a_receipt_needs_a_claim(journal: Journal) -> None:
    see(journal)
    with pytest.raises(JournalError, match="cannot become committing"):
        journal.record_receipt(JOB, b"a" * 32, b"first")
    assert journal.signed(JOB) is None


# ---- reorganisations ------------------------------------------------------------------------------------------------


def test_unwinding_takes_back_what_the_blocks_said_and_nothing_else(journal: Journal) -> None:
    see(journal)
    claim(journal, block=at(7))
    journal.record_receipt(JOB, b"a" * 32, b"first")
    journal.move(JOB, JobState.COMMITTED, block=at(9))
    journal.move(JOB, JobState.FINALIZED, block=at(12))
    for number in range(5, 13):
        journal.advance(at(number))

    journal.unwind(11)
    assert (journal.job(JOB).state, journal.cursor) == (JobState.COMMITTED, at(11))
    journal.unwind(8)
    assert journal.job(JOB).state is JobState.COMMITTING
    assert journal.job(JOB).claim == at(7)
    journal.unwind(6)
    assert journal.job(JOB).state is JobState.COMMITTING  # the receipt is signed: that cannot be unsaid
    assert journal.job(JOB).claim is None
    journal.unwind(4)
    assert journal.job(JOB).submitted is None
    assert journal.cursor is None


def test_a_loss_that_is_undone_leaves_the_claim_pending(journal: Journal) -> None:
    see(journal)
    journal.move(JOB, JobState.CLAIMING)
    journal.move(JOB, JobState.LOST, block=at(6))
    journal.unwind(5)
    assert journal.move(JOB, JobState.CLAIMED, block=at(6, fork=1)).claim == at(6, fork=1)


def test_a_job_seen_again_keeps_its_state(journal: Journal) -> None:
    see(journal)
    journal.move(JOB, JobState.CLAIMING)
    journal.unwind(4)
    see(journal, block=at(5, fork=1))
    assert journal.job(JOB).state is JobState.CLAIMING
    assert journal.job(JOB).submitted == at(5, fork=1)


def test_one_submission_in_two_blocks_is_a_contradiction(journal: Journal) -> None:
    see(journal)
    with pytest.raises(RpcBehind, match="submitted twice"):
        see(journal, block=at(6))


def test_old_block_hashes_thin_out(journal: Journal) -> None:
    for number in range(1020, 1400):
        journal.advance(at(number))
    known = [block.number for block in journal.known_blocks()]
    assert known[:256] == list(range(1399, 1143, -1))
    assert known[256:] == [1024]
