"""The requests that wait: a line for each recipe of each tenant."""

from collections import Counter, deque
from collections.abc import Collection, Iterator

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.sequence import Sequence
from openlora.node.errors import Overloaded

Line = tuple[str, ...]


class WaitingLines:
    """First come, first served within a line; which line is next is the scheduler's affair.

    A tenant may queue as much as remains free: alone half of the places, and whoever floods the queue leaves room for
    everyone who comes later.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._lines: dict[str, dict[Line, deque[Sequence]]] = {}
        self._tokens: Counter[str] = Counter()  # by tenant
        self._requests: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._requests.total()

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for lines in self._lines.values() for line in lines.values() for sequence in line)

    @property
    def tenants(self) -> Collection[str]:
        return self._lines.keys()

    def lines(self, tenant: str) -> Collection[Line]:
        return self._lines.get(tenant, {}).keys()

    def head(self, tenant: str, line: Line) -> Sequence | None:
        waiting = self._lines.get(tenant, {}).get(line)
        return waiting[0] if waiting else None

    def check_room(self, sequence: Sequence) -> None:
        """Raises Overloaded if the queue, or the tenant's part of it, is full."""
        tenant, limits = sequence.tenant, self._limits
        if self._requests[tenant] + 1 > limits.max_waiting - len(self):
            raise Overloaded("overloaded", f"{self._requests[tenant]} of your requests are waiting; try again later")
        if self._tokens[tenant] + len(sequence.tokens) > limits.max_waiting_tokens - self._tokens.total():
            raise Overloaded("overloaded", f"{self._tokens[tenant]} of your tokens are waiting; try again later")

    def append(self, sequence: Sequence) -> None:
        self._line(sequence).append(sequence)
        self._count(sequence, 1)

    def put_back(self, sequence: Sequence) -> None:
        """Where it was: before all of its line that came later."""
        line = self._line(sequence)
        line.insert(sum(1 for other in line if other.arrival < sequence.arrival), sequence)
        self._count(sequence, 1)

    def remove(self, sequence: Sequence) -> None:
        lines = self._lines[sequence.tenant]
        lines[sequence.line].remove(sequence)
        if not lines[sequence.line]:
            del lines[sequence.line]
        if not lines:
            del self._lines[sequence.tenant]
        self._count(sequence, -1)

    def check_integrity(self) -> None:
        """Assert that the sums are right and no line is empty."""
        assert self._requests == Counter(sequence.tenant for sequence in self), "waiting requests are miscounted"
        tokens = Counter[str]()
        for sequence in self:
            tokens[sequence.tenant] += len(sequence.tokens)
        assert self._tokens == tokens, "waiting tokens are miscounted"
        assert all(line for lines in self._lines.values() for line in (lines, *lines.values())), "a line is empty"

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        return self._lines.setdefault(sequence.tenant, {}).setdefault(sequence.line, deque())

    def _count(self, sequence: Sequence, sign: int) -> None:
        self._requests[sequence.tenant] += sign
        self._tokens[sequence.tenant] += sign * len(sequence.tokens)
        if not self._requests[sequence.tenant]:
            del self._requests[sequence.tenant], self._tokens[sequence.tenant]
