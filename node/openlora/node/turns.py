"""Who claims first: nodes that could take a job take turns, so that few claims are lost to each other and adapters are
used where they are.

Every node puts the live ones into the same order, from nothing but the job and what each says of itself. It is no rule:
a node that claims out of turn gains a job and loses nothing, save that the others fetch less and pay less gas.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from hashlib import sha256

from openlora.contracts import Recipe
from openlora.node.job import Job, JobState


class NotYet(Exception):
    """Others are better placed to claim the job; they have `wait_s` seconds to do so."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.1f} s")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Contender:
    """A node that could take a job: which adapters its engine holds, which are on its disk, and whether half of the
    jobs that it runs at once are under way."""

    operator: str
    loaded: Container[bytes]
    stored: Container[bytes]
    crowded: bool = False

    def place(self, job_id: int, adapters: Iterable[bytes]) -> tuple[bool, int, int, bytes]:
        """Less is better: crowded or not, adapters to fetch, adapters to load, and a lot that differs by job."""
        to_load = [digest for digest in adapters if digest not in self.loaded]
        to_fetch = [digest for digest in to_load if digest not in self.stored]
        lot = sha256(b"%d:%s" % (job_id, self.operator.lower().encode())).digest()
        return self.crowded, len(to_fetch), len(to_load), lot


@dataclass(frozen=True, slots=True)
class Turns:
    """`me` and `rivals` say who contends now; a rival serves the recipe's base at the job's price and has room."""

    turn_s: float  # what each better placed node is given, about two blocks
    me: Callable[[], Contender]
    rivals: Callable[[Job, Recipe], Iterable[Contender]]

    def wait_s(self, job: Job, recipe: Recipe, now_s: float) -> float:
        """Seconds until this node's turn at a new job, from when it was seen. A job that came back waits for nobody:
        those who were better placed have had it."""
        if job.state is not JobState.SEEN or self.turn_s <= 0:
            return 0.0
        mine = self.me().place(job.id, recipe.adapters)
        before = sum(rival.place(job.id, recipe.adapters) < mine for rival in self.rivals(job, recipe))
        return job.changed_at + before * self.turn_s - now_s
