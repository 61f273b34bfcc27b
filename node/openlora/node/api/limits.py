"""How much the HTTP face takes on before it says "later"."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from openlora.node.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """Refusals are cheap and early; what is admitted is served."""

    max_header_bytes: int = 16 << 10
    max_body_bytes: int = 4 << 20
    head_timeout_s: float = 10.0  # for a request's head to arrive, from the connection or its first byte on
    body_timeout_s: float = 30.0  # for a request body to arrive
    send_timeout_s: float = 30.0  # for a reader to take what it asked for
    max_connections: int = 1024
    keep_alive_s: int = 30  # between two requests: longer than clients wait, so that it is they who close
    max_requests: int = 512  # generations admitted at once, running or waiting; one tenant has half of the room at most
    max_tokens: int = 1 << 21  # their prompts' tokens and the tokens that they may generate; one tenant as above
    max_choices: int = 128  # prompts · n of one HTTP request
    retry_after_s: int = 1


class Admission:
    """The bounded queue: counts what was admitted and has not ended, by requests and by tokens.

    A tenant may hold as much as remains free: alone half of the queue, and there is room for whoever comes later.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        return self._requests.total()

    @property
    def tokens(self) -> int:
        return self._tokens.total()

    @contextmanager
    def hold(self, tenant: str, *, requests: int = 0, tokens: int = 0) -> Iterator[None]:
        """Admits for the length of the block. Raises Overloaded; more than there ever is room for needs an empty
        queue."""
        held = ((self._requests, requests, self._limits.max_requests), (self._tokens, tokens, self._limits.max_tokens))
        for counts, more, limit in held:
            if more and counts.total() and counts[tenant] + more > limit - counts.total():
                raise Overloaded("rate_limit_exceeded", "The queue is full; try again later.")
        for counts, more, _ in held:
            counts[tenant] += more
        try:
            yield
        finally:
            for counts, more, _ in held:
                counts[tenant] -= more
                if not counts[tenant]:
                    del counts[tenant]
