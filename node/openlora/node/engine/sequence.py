"""One request inside the engine."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from openlora.node.engine.lookup import Lookup
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
    tenant: str = ""  # whose request it is: tenants share the engine evenly, and no cached pages
    line: tuple[str, ...] = ()  # the adapters' keys; a tenant's lines share its part evenly
    root: bytes | None = None  # what its pages' keys begin with; None: no pages are shared
    arrival: int = 0  # its number in the order of coming; the scheduler's
    computed: int = 0  # tokens whose keys and values are in the cache
    charged: int = 0  # tokens that its tenant has paid for: none twice, however often they are computed
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] = field(default_factory=list)  # the prefix cache's, one a full page
    offered: int = 0  # pages that the prefix cache has seen
    lookup: Lookup | None = None  # where drafts come from; None: it has none

    @property
    def pending(self) -> int:
        """Tokens still to be run before the next one is known."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length


class Chunk(NamedTuple):
    """The tokens of one sequence that one forward pass computes: tokens[start:start + length], and those of `draft`
    after its last one, which may turn out to be others."""

    sequence: Sequence
    start: int
    length: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def tokens(self) -> list[int]:
        """Of all its rows."""
        return [*self.sequence.tokens[self.start : self.end], *self.draft]

    @property
    def outputs(self) -> int:
        """How many of the chunk's last rows have their logits computed."""
        if self.sequence.sampling is None:
            return self.length
        return 1 + len(self.draft) if self.end == len(self.sequence.tokens) else 0
