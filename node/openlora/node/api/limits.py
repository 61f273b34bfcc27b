"""How much the HTTP face takes on before it says "later"."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from openlora.node.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """Refusals are cheap and early; what is admitted is served."""

    max_header_bytes: int = 16 << 10
    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 30.0  # for a request body to arrive
    send_timeout_s: float = 30.0  # for a reader to take what it asked for
    max_connections: int = 1024
    max_requests: int = 256  # generations admitted at once, running or waiting
    max_tokens: int = 1 << 20  # their prompts' tokens and the tokens that they may generate
    max_choices: int = 128  # prompts · n of one HTTP request
    retry_after_s: int = 1


class Admission:
    """The bounded queue: counts what was admitted and has not ended, by requests and by tokens."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.tokens = 0

    @contextmanager
    def hold(self, *, requests: int = 0, tokens: int = 0) -> Iterator[None]:
        """Admits for the length of the block. Raises Overloaded; more than the whole queue needs an empty one."""
        too_many = self.requests > 0 and self.requests + requests > self._limits.max_requests
        too_long = self.tokens > 0 and self.tokens + tokens > self._limits.max_tokens
        if too_many or too_long:
            raise Overloaded("rate_limit_exceeded", "The queue is full; try again later.")
        self.requests += requests
        self.tokens += tokens
        try:
            yield
        finally:
            self.requests -= requests
            self.tokens -= tokens
