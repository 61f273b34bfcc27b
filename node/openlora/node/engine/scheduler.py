"""Which tokens the next forward pass computes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.sequence import Chunk, Sequence
from openlora.node.errors import ConfigError, Overloaded


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine may use. The defaults suit a small model on one CPU."""

    kv_tokens: int = 65_536  # capacity of the paged cache
    page_tokens: int = 16
    max_batch_tokens: int = 512  # rows of one forward pass
    max_running: int = 64  # sequences that hold pages
    max_waiting: int = 1_024
    max_waiting_tokens: int = 1_048_576  # of all waiting prompts
    max_adapters: int = 16  # in one request's recipe
    adapter_bytes: int = 2 << 30  # of all adapters, those kept for running requests included

    def __post_init__(self) -> None:
        wrong = [name for name in self.__slots__ if getattr(self, name) < 1]
        if wrong:
            raise ConfigError(f"engine limits must be positive: {', '.join(wrong)}")
        if self.max_running > self.max_batch_tokens:
            raise ConfigError("max_running exceeds max_batch_tokens: some running requests would never get a token")
        if self.kv_tokens < self.page_tokens:
            raise ConfigError("kv_tokens is less than one page")


class Scheduler:
    """Continuous batching, first come first served, under a budget of tokens a step.

    Every running sequence that is decoding gets its row first; what is left of the budget goes to prompts in order of
    admission, in chunks. A sequence is admitted when there are pages for all its tokens, besides one for each that
    runs; decoding takes pages as it grows, and when none is free the sequence admitted last gives up all of its own and
    returns to the head of the queue. The sequence admitted first always goes on: with `kv_tokens` at least the longest
    request, everything admitted finishes.
    """

    def __init__(self, limits: EngineLimits, blocks: BlockAllocator) -> None:
        self._limits = limits
        self._blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits into the empty cache. Raises Overloaded when the queue is full."""
        tokens = sum(len(waiting.tokens) for waiting in self.waiting)
        if len(self.waiting) >= self._limits.max_waiting:
            raise Overloaded("overloaded", f"{len(self.waiting)} requests are waiting already; try again later")
        if tokens + len(sequence.tokens) > self._limits.max_waiting_tokens:
            raise Overloaded("overloaded", f"{tokens} prompt tokens are waiting already; try again later")
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a queued or running sequence and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The next pass: at most `max_batch_tokens` rows, pages provided. Empty only if there is nothing to do."""
        chunks = list(self._decode_rows())
        budget = self._limits.max_batch_tokens - len(chunks)
        decoding = {id(chunk.sequence) for chunk in chunks}
        for sequence in self.running:
            if budget and id(sequence) not in decoding:
                chunks.append(_chunk(sequence, budget))
                budget -= chunks[-1].length
        while budget and (admitted := self._admit()) is not None:
            chunks.append(_chunk(admitted, budget))
            budget -= chunks[-1].length
        return chunks

    def check_integrity(self) -> None:
        """Assert that exactly the running sequences hold pages, and no page twice."""
        self._blocks.check_integrity([sequence.pages for sequence in self.running])
        assert not any(sequence.pages or sequence.computed for sequence in self.waiting)

    def _decode_rows(self) -> Iterator[Chunk]:
        for sequence in [s for s in self.running if s.pending == 1]:
            if sequence.pages and self._grow(sequence):  # no pages: preempted by one before it
                yield _chunk(sequence, 1)

    def _grow(self, sequence: Sequence) -> bool:
        """Give the sequence the page its next token needs; False if it had to be preempted itself."""
        missing = self._blocks.pages_for(len(sequence.tokens)) - len(sequence.pages)
        while missing > self._blocks.free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += self._blocks.allocate(missing)
        return True

    def _admit(self) -> Sequence | None:
        """Move the head of the queue to the running ones, if it may run now."""
        if not self.waiting or len(self.running) >= self._limits.max_running:
            return None
        needed = self._blocks.pages_for(len(self.waiting[0].tokens))
        if needed + len(self.running) > self._blocks.free:
            return None
        sequence = self.waiting.popleft()
        sequence.pages = self._blocks.allocate(needed)
        self.running.append(sequence)
        return sequence

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    return Chunk(sequence, sequence.computed, min(sequence.pending, budget))
