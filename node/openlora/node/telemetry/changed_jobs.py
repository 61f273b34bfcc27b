"""Which jobs of the journal have changed since one last asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from openlora.node.job import Job

OVERLAP_S: Final = 5.0  # a clock that steps back by less than this hides no job
MAX_JOBS: Final = 512  # told at once; the rest the next time


@dataclass(slots=True)
class ChangedJobs:
    """`changed_since` is the journal's; `since_s`: changes before it are known."""

    changed_since: Callable[[float, int], Sequence[Job]]
    since_s: float
    _told: dict[int, float] = field(default_factory=dict)  # job → the change that was told

    def next(self) -> list[Job]:
        """Each job that changed since the last call, once for all its changes."""
        changed = self.changed_since(self.since_s - OVERLAP_S, MAX_JOBS)
        new = [job for job in changed if self._told.get(job.id) != job.changed_at]
        self._told |= {job.id: job.changed_at for job in new}
        if changed:
            self.since_s = changed[-1].changed_at
        recent_s = self.since_s - OVERLAP_S
        self._told = {job_id: at_s for job_id, at_s in self._told.items() if at_s >= recent_s}
        return new
