"""The market's books, read from the events of queue and sessions: what went in, and where every wei of it went."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openlora.contracts import (
    JobAnnulled,
    JobCancelled,
    JobExpired,
    JobFinalized,
    JobSlashed,
    JobSubmitted,
    Paid,
    Role,
    SessionClosed,
    SessionOpened,
    SessionSettled,
    SessionToppedUp,
    eip712,
)


@dataclass(frozen=True, slots=True)
class Books:
    """Sums over a range of events, in token wei: jobs' escrows and sessions' deposits together. `open_wei` is what is
    neither paid nor refunded."""

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

    @classmethod
    def of(cls, events: Iterable[object]) -> "Books":
        """Reads JobSubmitted, Paid, JobFinalized and the events of other ends; passes over others."""
        held: dict[int | bytes, int] = {}  # job or session → what of its escrow or deposit is there
        earned: Counter[tuple[Role, str]] = Counter()
        escrow_wei = refunded_wei = finalized = jobs = 0
        for event in events:
            match event:
                case JobSubmitted():
                    jobs += 1
                    held[event.job_id] = eip712.escrow_wei(event.spec)
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
                    refunded_wei += event.refund
                    del held[event.job_id]
        paid_wei, open_wei = sum(earned.values()), sum(held.values())
        return cls(escrow_wei, paid_wei, refunded_wei, open_wei, dict(earned), jobs, finalized)
