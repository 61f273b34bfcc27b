"""The pages of the KV cache: who holds which, and which are kept for their content."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Hands out page numbers 0..pages−1.

    A page may have several holders. Once all have released it, it is free, or, if it was named by its content,
    *idle*: kept to be found under that name until its memory is needed. Of the idle pages the one longest unused goes
    first.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self._holders = [0] * pages
        self._free = list(reversed(range(pages)))  # a stack: the page last freed is the warmest
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._names: dict[int, bytes] = {}
        self._by_name: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """How many `allocate` can give: free pages and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def free(self) -> int:
        """Those of them that nobody would find."""
        return len(self._free)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` pages, each with one holder. The caller has made sure that `available` suffices."""
        assert 0 <= count <= self.available, f"{count} pages wanted, {self.available} available"
        while len(self._free) < count:
            self.forget([next(iter(self._idle))])
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def retain(self, pages: Iterable[int]) -> None:
        """One more holder for each page, which is held or idle."""
        for page in pages:
            assert self._holders[page] or page in self._idle, f"page {page} is free"
            self._holders[page] += 1
            self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each page. Of pages that fall idle together the last ones are the first to go: what
        follows in a sequence is of no use without what precedes it."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} is free"
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._names:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def held_once(self, pages: Iterable[int]) -> int:
        """How many of the pages would become available if one holder released them."""
        return sum(self._holders[page] == 1 for page in pages)

    def name(self, page: int, name: bytes) -> None:
        """Let a held page, whose content will not change any more, be found as `name`, unless another one is."""
        assert self._holders[page] > 0, f"page {page} is held by nobody, and has no content"
        if name not in self._by_name and page not in self._names:
            self._names[page] = name
            self._by_name[name] = page

    def find(self, name: bytes) -> int | None:
        """The page of that content, held or idle."""
        return self._by_name.get(name)

    def forget(self, pages: Iterable[int]) -> None:
        """Take the pages' names away; idle ones become free."""
        for page in pages:
            if (name := self._names.pop(page, None)) is None:
                continue
            del self._by_name[name]
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)

    def name_of(self, page: int) -> bytes | None:
        return self._names.get(page)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that the holders are exactly those of `held`, a list of pages each, that every other page is either
        free or idle, and that names and pages lead to each other. What is wrong is said of the first page it is."""
        counts = Counter(page for pages in held for page in pages)
        free = Counter(self._free)
        for page, holders in enumerate(self._holders):
            found, idle, name = counts[page], page in self._idle, self._names.get(page)
            assert holders == found, f"page {page} is counted as held by {holders} sequences; {found} hold it"
            places = free[page] + idle + (found > 0)
            assert places == 1, f"page {page} is {free[page]} times free, idle: {idle}, held by {found}"
            assert name is not None or not idle, f"page {page} is idle without a name"
            assert name is None or not free[page], f"page {page} is free and can be found"
            assert name is None or self._by_name.get(name) == page, f"page {page} has a name that leads elsewhere"
        assert len(self._names) == len(self._by_name), "a name leads to a page that has none"
