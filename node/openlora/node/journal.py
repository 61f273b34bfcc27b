"""The agent's memory that must survive: written before any transaction is sent and before anything is signed.

Whoever needs two facts to agree (an event's effect and the cursor behind it, a nonce and the bytes that use it) writes
them in one transaction.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from openlora.contracts import Deployment, JobSpec
from openlora.node.database import Database
from openlora.node.errors import JournalError, RpcBehind
from openlora.node.job import TRANSITIONS, BlockRef, Job, JobId, JobState, Signed, SkipCode
from openlora.node.journal_schema import MIGRATIONS

KEPT_BLOCKS = 256  # recent blocks whose hashes are remembered one by one: the deepest reorganisation that is survived
CHECKPOINT_EVERY = 1024  # of older ones
PAYMENT_UNIT_WEI = 10**12
FIRST_NONCE = "first nonce"  # of the hot key that this journal knows of
DROP_INTENTS = "UPDATE intents SET state = 'pending', receipt = NULL, block_number = NULL, cost_wei = NULL"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose journal this is. One that is opened under another identity is refused; but an operator's outlives its hot
    keys, since receipts are the operator's, whichever key signs them."""

    chain_id: int
    contracts: Mapping[str, str]  # name → address
    hot_key: str  # address
    operator: str | None = None  # address of whom the chain says the hot key serves; None where it was not asked

    @classmethod
    def of(cls, deployment: Deployment, hot_key: str, operator: str | None = None) -> Self:
        """The market's own contracts; the token is not one of them."""
        names = ("vault", "node_registry", "adapter_registry", "job_queue", "sessions", "outputs")
        return cls(deployment.chain_id, {name: getattr(deployment, name) for name in names}, hot_key, operator)

    def named_parts(self) -> dict[str, str]:
        contracts = {f"contract {name}": address.lower() for name, address in self.contracts.items()}
        operator = {} if self.operator is None else {"operator": self.operator.lower()}
        return {"chain id": str(self.chain_id), **contracts, **operator, "hot key": self.hot_key.lower()}

    def contradicted(self, recorded: Mapping[str, str]) -> str | None:
        """The name of the first part that a journal records otherwise, None when it is ours."""
        parts = self.named_parts()
        others = [name for name, value in parts.items() if recorded.get(name, value) != value]
        if others == ["hot key"] and "operator" in parts and "operator" in recorded:
            return None
        return others[0] if others else None


@dataclass(frozen=True, slots=True)
class Transition:
    state: JobState
    skip: SkipCode | None
    reason: str | None
    block: BlockRef | None  # that of the event which caused it; None for our own decision
    at: float  # unix seconds


class Journal(Database):
    """The open journal of one state folder; at most one process has it.

    Every method is short, synchronous, and writes in a transaction of its own or joins the one around it.
    """

    def __init__(self, folder: Path, identity: Identity, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates `folder/journal.sqlite`.

        Raises JournalError when another process has it open, when it belongs to another chain, set of contracts or
        operator, or to another hot key while either one's operator is unknown, and when a newer version wrote it.
        """
        super().__init__(folder / "journal.sqlite", MIGRATIONS)
        self.now = clock  # unix seconds
        try:
            self._check_identity(identity)
        except BaseException:
            self.close()
            raise

    def _check_identity(self, identity: Identity) -> None:
        with self.transaction():
            recorded, parts = dict(self.rows("SELECT key, value FROM meta")), identity.named_parts()
            if (name := identity.contradicted(recorded)) is not None:
                raise JournalError(
                    f"{self.path} belongs to {name} {recorded[name]}, not {parts[name]}: use another state folder"
                )
            if (former := recorded.get("hot key", parts["hot key"])) != parts["hot key"]:
                self._succeed(former)
            for name, value in parts.items():
                self.set_meta(name, value)

    def _succeed(self, former: str) -> None:
        """A new hot key's nonces begin anew. What the former one had signed for the chain is void, unless it is mined:
        the jobs' states tell what must be signed again. What it has cost stays on the books."""
        with self.transaction() as db:
            db.execute("DELETE FROM attempts")
            db.execute("DELETE FROM foreign_transactions")
            db.execute("DELETE FROM intents WHERE cost_wei IS NULL")
            db.execute("UPDATE intents SET key = ? || key, state = 'final', block_number = NULL", (f"{former} ",))
            db.execute("DELETE FROM meta WHERE key = ?", (FIRST_NONCE,))

    def probe(self) -> None:
        """Proves that the journal can be written, for the watchdog. Raises JournalError."""
        self.set_meta("probed at", repr(self.now()))

    def meta(self, key: str) -> str | None:
        found = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return found[0][0] if found else None

    def set_meta(self, key: str, value: str) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # ---- the cursor -------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> BlockRef | None:
        """The last block whose logs have been applied."""
        found = self.rows("SELECT number, hash FROM blocks ORDER BY number DESC LIMIT 1")
        return BlockRef(*found[0]) if found else None

    def known_blocks(self) -> list[BlockRef]:
        """Applied blocks whose hashes are remembered, newest first: the last 256 and every 1024th before."""
        return [BlockRef(*row) for row in self.rows("SELECT number, hash FROM blocks ORDER BY number DESC")]

    def agrees_with(self, block: BlockRef) -> bool:
        """Whether no other block of its number is among the known ones."""
        return not self.rows("SELECT 1 FROM blocks WHERE number = ? AND hash != ?", block.number, block.hash)

    def advance(self, block: BlockRef, logs: int | None = None) -> None:
        """Moves the cursor up to `block`; belongs in the transaction that applies the logs up to it. `logs`: how many
        `block` held, where it was read by itself and is to be looked at again."""
        cursor = self.cursor
        assert cursor is None or block.number > cursor.number, f"cursor {cursor} cannot advance to {block}"
        with self.transaction() as db:
            db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (block.number, block.hash, logs))
            old = "DELETE FROM blocks WHERE number <= ? AND number % ?"
            db.execute(old, (block.number - KEPT_BLOCKS, CHECKPOINT_EVERY))

    def unreviewed(self, upto: int, limit: int) -> list[tuple[BlockRef, int]]:
        """The oldest blocks up to `upto` that are to be looked at again, and how many logs each held."""
        sql = "SELECT number, hash, logs FROM blocks WHERE logs NOT NULL AND number <= ? ORDER BY number LIMIT ?"
        return [(BlockRef(number, digest), logs) for number, digest, logs in self.rows(sql, upto, limit)]

    def set_reviewed(self, upto: int) -> None:
        with self.transaction() as db:
            db.execute("UPDATE blocks SET logs = NULL WHERE number <= ? AND logs NOT NULL", (upto,))

    def unwind(self, ancestor: int) -> None:
        """Takes back what blocks above `ancestor` caused: the cursor, transitions, money, registrations, mined
        transactions.

        Our own decisions, intents, signed bytes and receipts stay: they cannot be unsaid.
        """
        with self.transaction() as db:
            changed = self.rows(
                "SELECT DISTINCT job_id FROM transitions WHERE block_number > ? AND state != ?", ancestor, JobState.SEEN
            )
            db.execute("DELETE FROM blocks WHERE number > ?", (ancestor,))
            db.execute("DELETE FROM transitions WHERE block_number > ? AND state != ?", (ancestor, JobState.SEEN))
            db.execute("DELETE FROM payments WHERE block_number > ?", (ancestor,))
            db.execute("DELETE FROM fees WHERE block_number > ?", (ancestor,))
            db.execute("DELETE FROM registered WHERE block_number > ?", (ancestor,))
            gone = "UPDATE jobs SET submitted_number = NULL, submitted_hash = NULL WHERE submitted_number > ?"
            db.execute(gone, (ancestor,))
            # The sender looks for these anew, and sends their bytes again if it must.
            db.execute(f"{DROP_INTENTS} WHERE block_number > ?", (ancestor,))
            for (job_id,) in changed:
                self._refresh(JobId(job_id))

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def see(self, job_id: JobId, spec: JobSpec, spec_hash: bytes, document: bytes | None, block: BlockRef) -> Job:
        """Records a submission.

        A job seen again after a reorganisation keeps its state. When another spec has taken its id, everything about
        the old one is forgotten but its receipt. Raises RpcBehind for a job that is already in another block.
        """
        with self.transaction() as db:
            known = self.find(job_id)
            if known is not None and known.submitted not in (None, block):
                raise RpcBehind(f"job {job_id} was submitted twice: the RPC contradicts itself")
            if known is not None and known.spec_hash == spec_hash:
                again = "UPDATE jobs SET submitted_number = ?, submitted_hash = ? WHERE id = ?"
                db.execute(again, (block.number, block.hash, job_id))
                return self.job(job_id)
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            db.execute("DELETE FROM transitions WHERE job_id = ?", (job_id,))
            db.execute(
                "INSERT INTO jobs (id, spec_hash, spec, input, submitted_number, submitted_hash, state, changed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, '', 0)",
                (job_id, spec_hash, msgspec.json.encode(spec), document, block.number, block.hash),
            )
            return self._append(job_id, Transition(JobState.SEEN, None, None, block, self.now()))

    def move(
        self,
        job_id: JobId,
        to: JobState,
        *,
        block: BlockRef | None = None,
        skip: SkipCode | None = None,
        reason: str | None = None,
    ) -> Job:
        """Records a transition: a fact of the chain when `block` is given, else a decision of ours.

        SKIPPED needs `skip`, FAILED needs `reason`, CLAIMED needs `block`; COMMITTING has `record_receipt`. Raises
        JournalError when the arrow does not exist, and for CLAIMING when a receipt was signed for the job in an earlier
        lease: the seed would differ, so a second receipt would be needed.
        """
        assert (skip is not None) == (to is JobState.SKIPPED), "a skip code belongs to SKIPPED"
        assert (reason is not None) == (to is JobState.FAILED), "a reason belongs to FAILED"
        assert block is not None or to is not JobState.CLAIMED, "only a block makes a claim"
        assert to is not JobState.COMMITTING, "record_receipt makes COMMITTING"
        with self.transaction():
            if to is JobState.CLAIMING and self.signed(job_id) is not None:
                raise JournalError(f"job {job_id} has a signed receipt; claiming it again would need a second one")
            self._check(job_id, to)
            return self._append(job_id, Transition(to, skip, reason, block, self.now()))

    def record_receipt(self, job_id: JobId, digest: bytes, receipt: bytes) -> Job:
        """Fixes the one receipt of a job, before it is signed: → COMMITTING. The same receipt again changes nothing.

        Raises JournalError for any other: two signed receipts for one job are equivocation, and cost the stake.
        """
        with self.transaction() as db:
            earlier = self.signed(job_id)
            if earlier is not None and earlier.digest != digest:
                old, new = earlier.digest.hex()[:16], digest.hex()[:16]
                raise JournalError(f"job {job_id} has the receipt {old}…; another one, {new}…, is never signed")
            if earlier is not None:
                return self.job(job_id)
            self._check(job_id, JobState.COMMITTING)
            db.execute("INSERT INTO receipts VALUES (?, ?, ?, NULL, ?)", (job_id, digest, receipt, self.now()))
            return self._append(job_id, Transition(JobState.COMMITTING, None, None, None, self.now()))

    def record_signature(self, job_id: JobId, digest: bytes, signature: bytes) -> Job:
        """Adds the signature of the receipt with this digest. Raises JournalError when the job has no such receipt."""
        with self.transaction() as db:
            signed = "UPDATE receipts SET signature = ? WHERE job_id = ? AND digest = ?"
            if not db.execute(signed, (signature, job_id, digest)).rowcount:
                raise JournalError(f"job {job_id} has no receipt {digest.hex()[:16]}…: record it before signing")
            return self.job(job_id)

    def find(self, job_id: JobId) -> Job | None:
        found = self.read(_to_job, _SELECT_JOB + " WHERE id = ?", job_id)
        return found[0] if found else None

    def job(self, job_id: JobId) -> Job:
        """Raises JournalError for an unknown job."""
        found = self.find(job_id)
        if found is None:
            raise JournalError(f"job {job_id} is not in the journal")
        return found

    def jobs(self, *states: JobState, limit: int = 10_000, newest_first: bool = False) -> list[Job]:
        """Jobs in any of `states` (in any at all, if none is named), by id."""
        wanted = json.dumps(states or list(JobState))
        where = " WHERE state IN (SELECT value FROM json_each(?))"
        order = " ORDER BY id DESC LIMIT ?" if newest_first else " ORDER BY id LIMIT ?"
        return self.read(_to_job, _SELECT_JOB + where + order, wanted, limit)

    def ids(self, state: JobState) -> list[JobId]:
        """Jobs in `state`, by id: what is looked through often."""
        return [JobId(job_id) for (job_id,) in self.rows("SELECT id FROM jobs WHERE state = ? ORDER BY id", state)]

    def page(
        self,
        *,
        limit: int,
        before: int | None = None,
        state: JobState | None = None,
        skip: SkipCode | None = None,
    ) -> list[Job]:
        """The newest jobs first, by id: those below `before`, in `state`, passed over because of `skip`."""
        conditions = {"id < ?": before, "state = ?": state, "skip = ?": skip}
        wanted = {sql: value for sql, value in conditions.items() if value is not None}
        where = " WHERE " + " AND ".join(wanted) if wanted else ""
        return self.read(_to_job, _SELECT_JOB + where + " ORDER BY id DESC LIMIT ?", *wanted.values(), limit)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        found = dict(self.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in JobState}

    def skips(self) -> dict[SkipCode, int]:
        """How many jobs are passed over at present, by why."""
        sql = "SELECT skip, count(*) FROM jobs WHERE skip IS NOT NULL GROUP BY skip ORDER BY skip"
        return dict(self.read(lambda row: (SkipCode(row[0]), int(row[1])), sql))

    def changed_since(self, at_s: float, limit: int) -> list[Job]:
        """Jobs whose last transition was at `at_s` (unix seconds) or later, the oldest change first."""
        where = " WHERE changed_at >= ? ORDER BY changed_at, id LIMIT ?"
        return self.read(_to_job, _SELECT_JOB + where, at_s, limit)

    def signed(self, job_id: JobId) -> Signed | None:
        """The receipt this node stands by for a job, if any, in whatever state the job is."""
        found = self.rows("SELECT digest, receipt, signature FROM receipts WHERE job_id = ?", job_id)
        return Signed(*found[0]) if found else None

    def transitions(self, job_id: JobId) -> list[Transition]:
        """A job's history, oldest first."""
        sql = "SELECT state, skip, reason, block_number, block_hash, at FROM transitions WHERE job_id = ? ORDER BY seq"
        return self.read(_to_transition, sql, job_id)

    # ---- payments ---------------------------------------------------------------------------------------------------

    def record_payment(self, role: str, amount_wei: int, block: BlockRef) -> None:
        """Adds one payment to this operator; belongs in the transaction that applies its block."""
        with self.transaction() as db:
            row = "INSERT INTO payments (role, high, low, block_number) VALUES (?, ?, ?, ?)"
            db.execute(row, (role, *divmod(amount_wei, PAYMENT_UNIT_WEI), block.number))

    def paid(self) -> dict[str, tuple[int, int]]:
        """Payments and their sum in token wei, by role."""
        sums = "SELECT role, count(*), sum(high), sum(low) FROM payments GROUP BY role ORDER BY role"
        return {role: (count, high * PAYMENT_UNIT_WEI + low) for role, count, high, low in self.rows(sums)}

    def paid_over_time(self, since_s: int, bucket_s: int) -> dict[int, dict[str, int]]:
        """Token wei by the start of its bucket, from `since_s` on, and by role."""
        sums = (
            "SELECT at_s / ? * ?, role, sum(high), sum(low) FROM payments WHERE at_s >= ? GROUP BY 1, role"
            " ORDER BY 1, role"
        )
        found: dict[int, dict[str, int]] = {}
        for start_s, role, high, low in self.rows(sums, bucket_s, bucket_s, since_s):
            found.setdefault(start_s, {})[role] = high * PAYMENT_UNIT_WEI + low
        return found

    def untimed_payment_blocks(self, limit: int) -> list[int]:
        """The newest blocks that paid and whose time nobody has asked for yet."""
        sql = "SELECT DISTINCT block_number FROM payments WHERE at_s IS NULL ORDER BY block_number DESC LIMIT ?"
        return [number for (number,) in self.rows(sql, limit)]

    def time_payments(self, block_number: int, at_s: int) -> None:
        """Records when a block was; a reorganisation takes the payments and their times back together."""
        with self.transaction() as db:
            db.execute("UPDATE payments SET at_s = ? WHERE block_number = ?", (at_s, block_number))

    def _check(self, job_id: JobId, to: JobState) -> None:
        state = self.job(job_id).state
        if to not in TRANSITIONS[state]:
            raise JournalError(f"job {job_id} is {state} and cannot become {to}")

    def _append(self, job_id: JobId, step: Transition) -> Job:
        number, digest = (step.block.number, step.block.hash) if step.block else (None, None)
        with self.transaction() as db:
            db.execute(
                "INSERT INTO transitions (job_id, state, skip, reason, block_number, block_hash, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job_id, step.state, step.skip, step.reason, number, digest, step.at),
            )
            self._refresh(job_id)
            return self.job(job_id)

    def _refresh(self, job_id: JobId) -> None:
        """A job's present state is its last transition; its claim, the last CLAIMED one."""
        history = self.transitions(job_id)
        last = history[-1]
        claims = [step.block for step in history if step.state is JobState.CLAIMED and step.block]
        number, digest = (claims[-1].number, claims[-1].hash) if claims else (None, None)
        with self.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, skip = ?, reason = ?, claim_number = ?, claim_hash = ?, changed_at = ?"
                " WHERE id = ?",
                (last.state, last.skip, last.reason, number, digest, self.now(), job_id),
            )


_SELECT_JOB = (
    "SELECT jobs.id, spec, spec_hash, input, submitted_number, submitted_hash, state, skip, reason,"
    " claim_number, claim_hash, digest, receipt, signature, changed_at"
    " FROM jobs LEFT JOIN receipts ON receipts.job_id = jobs.id"
)


def _to_job(row: tuple[Any, ...]) -> Job:
    (job_id, spec, spec_hash, document, submitted_number, submitted_hash, state, skip, reason) = row[:9]
    (claim_number, claim_hash, digest, receipt, signature, changed_at) = row[9:]
    return Job(
        id=JobId(job_id),
        spec=msgspec.json.decode(spec, type=JobSpec),
        spec_hash=spec_hash,
        input=document,
        submitted=_ref(submitted_number, submitted_hash),
        state=JobState(state),
        skip=SkipCode(skip) if skip else None,
        reason=reason,
        claim=_ref(claim_number, claim_hash),
        signed=None if digest is None else Signed(digest, receipt, signature),
        changed_at=changed_at,
    )


def _to_transition(row: tuple[Any, ...]) -> Transition:
    state, skip, reason, number, digest, at = row
    return Transition(JobState(state), SkipCode(skip) if skip else None, reason, _ref(number, digest), at)


def _ref(number: int | None, digest: bytes | None) -> BlockRef | None:
    return None if number is None or digest is None else BlockRef(number, digest)
