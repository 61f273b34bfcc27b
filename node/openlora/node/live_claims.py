"""How many jobs each operator holds, as the chain's events tell: the same for every node that reads them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from openlora.contracts import JobClaimed, JobCommitted, JobReleased, LeaseLapsed


@dataclass(slots=True)
class LiveClaims:
    """Claims that are neither committed, released nor past their lease. Nothing is kept on disk: after a restart, and
    after a reorganisation, the count is right again once the leases of that time are over."""

    clock: Callable[[], float] = time.time
    _claims: dict[int, tuple[str, int]] = field(default_factory=dict)  # job → operator in lower case, end of its lease

    def apply(self, event: object) -> None:
        """Takes note of one of the queue's events, in their order."""
        match event:
            case JobClaimed():
                self._claims[event.job_id] = (event.node.lower(), event.lease_deadline)
            case JobCommitted() | JobReleased() | LeaseLapsed():
                self._claims.pop(event.job_id, None)

    def ends_at_s(self, job_id: int) -> int | None:
        """When the lease of a live claim ends, in the chain's unix seconds; None for one that was not heard of."""
        claim = self._claims.get(job_id)
        return None if claim is None else claim[1]

    def of(self, operator: str) -> int:
        """Live claims of `operator`."""
        now_s = self.clock()
        self._claims = {job: claim for job, claim in self._claims.items() if claim[1] > now_s}
        return sum(holder == operator.lower() for holder, _ in self._claims.values())
