"""Every fee that the queue has divided, and how: who gets which wei of it, as the contract reckons."""

from collections.abc import Sequence
from dataclasses import dataclass

from openlora.contracts import JobFinalized, Leg, Role
from openlora.node.job import BlockRef, JobId
from openlora.node.journal import Journal

BPS = 10_000


@dataclass(frozen=True, slots=True)
class Fee:
    """A job's fee that was divided. `before_wei`: all fees of its recipe until then."""

    job_id: JobId
    recipe_id: int
    fee_wei: int
    before_wei: int
    block_number: int


class Fees:
    """The fees in the journal, of this node's jobs and of everybody else's; a reorganisation takes its own back."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def apply(self, event: object, block: BlockRef) -> None:
        """Records one event of `block`, in the follower's transaction; passes over what divides no fee, and a job whose
        submission an RPC kept back."""
        if not isinstance(event, JobFinalized) or (job := self._journal.find(JobId(event.job_id))) is None:
            return
        recipe_id = job.spec.recipe_id
        row = (event.job_id, recipe_id, str(event.fee), str(self.total_wei(recipe_id)), block.number)
        with self._journal.transaction() as db:
            sql = "INSERT INTO fees (job_id, recipe_id, fee_wei, before_wei, block_number) VALUES (?, ?, ?, ?, ?)"
            db.execute(sql, row)

    def of(self, job_id: JobId) -> Fee | None:
        """None for a job that is not paid yet."""
        sql = "SELECT recipe_id, fee_wei, before_wei, block_number FROM fees WHERE job_id = ?"
        for recipe_id, fee_wei, before_wei, number in self._journal.rows(sql, job_id):
            return Fee(job_id, recipe_id, int(fee_wei), int(before_wei), number)
        return None

    def total_wei(self, recipe_id: int) -> int:
        """Of all fees of a recipe so far: JobQueue.recipeFees."""
        sql = "SELECT fee_wei, before_wei FROM fees WHERE recipe_id = ? ORDER BY seq DESC LIMIT 1"
        return sum(int(fee_wei) + int(before_wei) for fee_wei, before_wei in self._journal.rows(sql, recipe_id))


def divide(legs: Sequence[Leg], before_wei: int, fee_wei: int, node: str) -> list[tuple[Role, str, int]]:
    """(role, payee, wei) of each part, the node's last, as Royalties.divide does it for one job: without the use fees,
    which come on top, they sum to the fee.

    The contract divides what neighbours in a batch earned together: over them the sums are these, but for fees of a few
    dozen wei, where a leg may get less and the node more.
    """
    left_wei = fee_wei
    parts: list[tuple[Role, str, int]] = []
    for leg in legs:
        if leg.role is Role.USE:
            parts.append((leg.role, str(leg.payee), leg.per_use))
            continue
        reckoned_wei = (before_wei + fee_wei) * leg.bps // BPS - before_wei * leg.bps // BPS
        amount_wei = min(left_wei, reckoned_wei)
        left_wei -= amount_wei
        parts.append((leg.role, str(leg.payee), amount_wei))
    return [*parts, (Role.NODE, node, left_wei)]
