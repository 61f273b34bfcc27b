"""One request inside the engine."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openlora.node.engine.messages import Sampling

if TYPE_CHECKING:  # adapters hold tensors, and scheduling needs no torch
    from openlora.node.engine.adapter_pool import ResidentAdapter


@dataclass(eq=False, slots=True)
class Sequence:
    """A request's tokens, how far the cache has them, and where.

    The last token is never in the cache: a pass over it yields the next one. A preempted sequence loses its pages and
    runs again over all its tokens, those generated included; sampling depends on positions alone, so it goes on as if
    nothing had happened.
    """

    request_id: str
    tokens: list[int]  # the prompt, then what was generated
    prompt_length: int
    sampling: Sampling | None  # None: nothing is sampled, every position's logits are wanted
    adapters: tuple[tuple["ResidentAdapter", float], ...] = ()  # with their weights, in the recipe's order
    computed: int = 0  # tokens whose keys and values are in the cache
    pages: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens still to be run before the next one is known."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that one forward pass computes: tokens[start:start + length]."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def outputs(self) -> int:
        """How many of the chunk's last rows have their logits computed."""
        if self.sequence.sampling is None:
            return self.length
        return 1 if self.end == len(self.sequence.tokens) else 0
