"""The market's books, read from the events of registry, queue and sessions: what went in, and where every wei went."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openlora.contracts import (
    AccessSet,
    JobAnnulled,
    JobCancelled,
    JobExpired,
    JobFinalized,
    JobSlashed,
    JobSubmitted,
    Paid,
    RecipeRegistered,
    Role,
    SessionClosed,
    SessionOpened,
    SessionSettled,
    SessionToppedUp,
    eip712,
)


@dataclass(frozen=True, slots=True)
class Books:
    """Sums over a range of events, in token wei: jobs' escrows with the use fees beside them, and sessions' deposits.
    `open_wei` is what is neither paid nor refunded."""

    escrow_wei: int
    paid_wei: int
    refunded_wei: int
    open_wei: int
    earned: Mapping[tuple[Role, str], int]  # (role, payee) → wei
    jobs: int
    finalized: int

    @property
    def balanced(self) -> bool:
        """Whether escrow = payments + refunds + what is still held, and payments = fees, to the wei."""
        return self.escrow_wei == self.paid_wei + self.refunded_wei + self.open_wei

    def earned_by(self, account: str) -> int:
        return sum(wei for (_, payee), wei in self.earned.items() if payee == account)

    @classmethod
    def of(cls, events: Iterable[object]) -> "Books":
        """Reads the events since the deployment, the registry's before the queue's of the same blocks. Passes over what
        moves no money."""
        use_fees: Counter[bytes] = Counter()  # of adapters, now
        pinned: Counter[int] = Counter()  # recipe → what a job of it costs beside its escrow
        held: dict[int | bytes, int] = {}  # job or session → what is there of what it put up
        beside: dict[int, int] = {}  # job → its use fees, which no event of its end counts
        earned: Counter[tuple[Role, str]] = Counter()
        escrow_wei = refunded_wei = finalized = 0
        for event in events:
            match event:
                case AccessSet():
                    use_fees[event.digest] = event.use_fee
                case RecipeRegistered():
                    pinned[event.recipe_id] = sum(use_fees[digest] for digest in event.adapters)
                case JobSubmitted():
                    beside[event.job_id] = pinned[event.spec.recipe_id]
                    held[event.job_id] = eip712.escrow_wei(event.spec) + beside[event.job_id]
                    escrow_wei += held[event.job_id]
                case SessionOpened() | SessionToppedUp():
                    amount = event.deposit if isinstance(event, SessionOpened) else event.amount
                    held[event.session_id] = held.get(event.session_id, 0) + amount
                    escrow_wei += amount
                case SessionSettled():
                    held[event.session_id] -= event.fee
                case SessionClosed():
                    refunded_wei += event.refund
                    held[event.session_id] -= event.refund
                case Paid():
                    earned[event.role, event.payee] += event.amount
                case JobFinalized():
                    finalized += 1
                    refunded_wei += event.refund
                    del held[event.job_id]
                case JobCancelled() | JobExpired() | JobSlashed() | JobAnnulled():
                    refunded_wei += event.refund + beside[event.job_id]
                    del held[event.job_id]
        paid_wei, open_wei = sum(earned.values()), sum(held.values())
        return cls(escrow_wei, paid_wei, refunded_wei, open_wei, dict(earned), len(beside), finalized)
