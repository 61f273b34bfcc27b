"""The pages of the KV cache: who holds which."""

from collections.abc import Sequence


class BlockAllocator:
    """Hands out page numbers 0..pages−1. A page may have several holders and is free once all have released it."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self._holders = [0] * pages
        self._free = list(reversed(range(pages)))  # a stack: the page last freed is the warmest

    @property
    def free(self) -> int:
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` free pages, each with one holder. The caller has made sure that `free` suffices."""
        assert 0 <= count <= len(self._free), f"{count} pages wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def retain(self, pages: Sequence[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free"
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each page."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Assert that the holders are exactly those of `held`, a list of pages each, and that all else is free."""
        counts = [0] * self.pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        assert counts == self._holders, "pages are held by nobody, or by more than know of it"
        assert sorted(self._free) == [page for page, n in enumerate(counts) if not n], "the free list is wrong"
