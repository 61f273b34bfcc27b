"""What each tenant has of the places and pages, beside an even part of them."""

from collections import Counter
from collections.abc import Sequence as AbstractSequence

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.sequence import Sequence


class Parts:
    """A moment's division of `places` and of the pages among `tenants` tenants, those that wait included."""

    def __init__(self, running: AbstractSequence[Sequence], blocks: BlockAllocator, places: int, tenants: int) -> None:
        self._running = running
        self._blocks = blocks
        self._places = places
        self._even_places, self._even_pages = places // tenants, blocks.pages // tenants
        self._held_places, self._held_pages = Counter[str](), Counter[str]()
        for sequence in running:
            self._count(sequence, 1)

    def has_its_part(self, sequence: Sequence) -> bool:
        """Whether others may overtake a waiting sequence: it is its own tenant's running ones that make it wait. One
        that is above the part all by itself is waited for once those have ended."""
        return self._held_places[sequence.tenant] > 0 and self._above_with(sequence)

    def youngest_of_most(self) -> Sequence:
        """The youngest sequence of the tenant that holds most pages, but never the oldest of all."""
        return max(self._youngest_first(), key=lambda s: (self._held_pages[s.tenant], s.arrival))

    def givers(self, sequence: Sequence) -> list[Sequence]:
        """The youngest sequences of tenants that keep their part without them, if their going lets `sequence` run
        within its own tenant's part; else none.

        Giving way takes nobody below its part, so no sequence is sent to and fro.
        """
        if self._above_with(sequence):
            return []
        givers: list[Sequence] = []
        no_place = len(self._running) + 1 - self._places
        no_pages = self._needed(sequence) + len(self._running) - self._blocks.available
        for other in self._youngest_first():
            if no_place <= 0 and no_pages <= 0:
                return givers
            spare_place = no_place > 0 and self._held_places[other.tenant] > self._even_places
            spare_pages = no_pages > 0 and self._held_pages[other.tenant] - len(other.pages) >= self._even_pages
            if spare_place or spare_pages:
                givers.append(other)
                self._count(other, -1)
                no_place -= 1
                no_pages -= self._blocks.held_once(other.pages) + 1
        return givers if no_place <= 0 and no_pages <= 0 else []

    def _above_with(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence would have its tenant above the even part."""
        places, pages = self._held_places[sequence.tenant] + 1, self._held_pages[sequence.tenant]
        return places > self._even_places or pages + self._needed(sequence) > self._even_pages

    def _youngest_first(self) -> list[Sequence]:
        """All that may give way: never the oldest, so that something always goes on to its end."""
        return sorted(self._running, key=lambda s: s.arrival, reverse=True)[:-1]

    def _needed(self, sequence: Sequence) -> int:
        return self._blocks.pages_for(len(sequence.tokens))

    def _count(self, sequence: Sequence, sign: int) -> None:
        self._held_places[sequence.tenant] += sign
        self._held_pages[sequence.tenant] += sign * len(sequence.pages)
