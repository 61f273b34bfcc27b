"""The market's books, read from the queue's own events: what went into escrow, and where every wei of it went."""

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
    eip712,
)


@dataclass(frozen=True, slots=True)
class Books:
    """Sums over a range of events, in token wei. `open_wei` is escrow of jobs that are not over."""

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
        held: dict[int, int] = {}  # job → escrow
        earned: Counter[tuple[Role, str]] = Counter()
        escrow_wei = refunded_wei = finalized = jobs = 0
        for event in events:
            match event:
                case JobSubmitted():
                    jobs += 1
                    held[event.job_id] = eip712.escrow_wei(event.spec)
                    escrow_wei += held[event.job_id]
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
