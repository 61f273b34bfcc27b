"""Who claims first: nodes that could take a job take turns, so that few claims are lost to each other and adapters are
used where they are.

Every node puts the live ones into the same order, from nothing but the job and what each says of itself. Nothing
enforces it: a node that claims out of turn gains a job and loses nothing. But nodes that keep to it fetch less and pay
less gas.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from openlora.contracts import JobFlag, Recipe
from openlora.node.job import Job, JobState


class NotYet(Exception):
    """Others are better placed to claim the job; they have `wait_s` seconds to do so."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.1f} s")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Contender:
    """A node that could take a job: the adapters it has, in its engine or on disk, and whether it already holds half
    of the jobs that it takes at once."""

    operator: str
    adapters: Container[bytes]
    crowded: bool

    def place(self, job_id: int, adapters: Sequence[bytes]) -> tuple[bool, int, bytes]:
        """A sort key, the smallest first: whether it is crowded, how many adapters it must fetch, and a lot. Jobs of
        the same adapters draw the same lots (rendezvous hashing), so that they meet where these are loaded; jobs
        without any are spread."""
        to_fetch = sum(digest not in self.adapters for digest in adapters)
        key = b"".join(adapters) or b"%d" % job_id
        return self.crowded, to_fetch, sha256(key + self.operator.lower().encode()).digest()


@dataclass(frozen=True, slots=True)
class Turns:
    """`me` and `rivals` say who contends now; a rival serves the recipe's base at the job's price and has room."""

    turn_s: Callable[[], float]  # what each better placed node is given now, about two blocks
    me: Callable[[], Contender]
    rivals: Callable[[Job, Recipe], Iterable[Contender]]

    def wait_s(self, job: Job, recipe: Recipe, now_s: float) -> float:
        """Seconds until this node's turn at a new job, from when it was seen. A job that came back waits for nobody:
        those who were better placed have had it. Nor does a private one: its client asks one node at a time. Nor one
        seen after `now_s`, before the machine's clock was set back."""
        turn_s = self.turn_s()
        if job.state is not JobState.SEEN or turn_s <= 0 or job.spec.flags & JobFlag.PRIVATE or job.changed_at > now_s:
            return 0.0
        mine = self.me().place(job.id, recipe.adapters)
        before = sum(rival.place(job.id, recipe.adapters) < mine for rival in self.rivals(job, recipe))
        return job.changed_at + before * turn_s - now_s
