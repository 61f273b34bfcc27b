"""Who is served next: the one who was served least."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

MAX_ABSENT = 1_024


class FairShare(Generic[Name]):
    """Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

    Each name that has requests is charged for the tokens computed for it, and the least charged is served next. Who
    comes starts no lower than the least charged of those present: being away earns no credit. Who leaves ahead of the
    others is remembered: leaving clears no debt.
    """

    def __init__(self) -> None:
        self._charged: dict[Name, int] = {}  # of those present, in the order of their coming
        self._absent: dict[Name, int] = {}
        self._requests: Counter[Name] = Counter()

    @property
    def present(self) -> int:
        return len(self._charged)

    def enter(self, name: Name) -> None:
        """One more request of `name` is here."""
        if name not in self._charged:
            floor = min(self._charged.values(), default=None)
            owed = self._absent.pop(name, 0)
            if floor is None:  # nobody competes: all begin anew
                self._absent.clear()
                owed = floor = 0
            self._charged[name] = max(owed, floor)
        self._requests[name] += 1

    def leave(self, name: Name) -> None:
        """One request less."""
        self._requests[name] -= 1
        if self._requests[name]:
            return
        del self._requests[name]
        charged = self._charged.pop(name)
        floor = min(self._charged.values(), default=charged)
        self._absent = {other: owed for other, owed in self._absent.items() if owed > floor}
        if charged > floor and len(self._absent) < MAX_ABSENT:
            self._absent[name] = charged

    def charge(self, name: Name, tokens: int) -> None:
        self._charged[name] += tokens

    def least(self, names: Iterable[Name]) -> Name | None:
        """The least charged of `names`, all present; of equals the first."""
        return min(names, key=self._charged.__getitem__, default=None)

    def check_integrity(self, requests: Iterable[Name]) -> None:
        """Assert that the requests present are those of `requests`, a name each."""
        assert self._requests == Counter(requests), "requests are counted that are not there"
        assert self._charged.keys() == self._requests.keys()
        assert not self._absent.keys() & self._charged.keys()
