"""Which tokens a pass computes ahead of those that are known."""

from collections import Counter

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.lookup import Odds
from openlora.node.engine.pace import BLOCK, Pace
from openlora.node.engine.sequence import Chunk, Sequence

MAX_DRAFT = 6  # tokens of a sequence in a pass; of one that is alone as many as fill a block of rows


class Speculation:
    """Lets the row of a sequence that decodes be followed by a draft: rows for the tokens that its own text suggests.

    Of the tokens drawn from all these rows, those are kept that would have been drawn one by one: the first, and each
    one after a token of the draft that was right. So the answer is the same, in fewer passes. A draft goes only as far
    as it saves more time than its rows take, and into pages that are free.
    """

    def __init__(self, blocks: BlockAllocator, pace: Pace) -> None:
        self._blocks = blocks
        self._pace = pace
        self._odds = Odds()
        self.drafted = 0  # tokens, since the start
        self.accepted = 0

    def extend(self, chunks: list[Chunk], room: int) -> list[Chunk]:
        """The pass's decode rows, with drafts of `room` rows together at most."""
        most = BLOCK - 1 if len(chunks) == 1 else MAX_DRAFT
        guesses = [self._guess(chunk.sequence, most) for chunk in chunks]
        ranked = sorted((-chance, i) for i, (_, chances) in enumerate(guesses) for chance in chances)[: max(room, 0)]
        if not ranked:
            return chunks
        rows = self._pace.draft_rows(len(chunks), [-chance for chance, _ in ranked])
        lengths = Counter(i for _, i in ranked[:rows])
        return [
            chunk._replace(draft=self._with_pages(chunk.sequence, tokens[: lengths[i]])) if lengths[i] else chunk
            for i, (chunk, (tokens, _)) in enumerate(zip(chunks, guesses, strict=True))
        ]

    def settle(self, chunk: Chunk) -> None:
        """The sequence has those tokens of its draft that were right; its pages for the others are free again."""
        sequence = chunk.sequence
        self.drafted += len(chunk.draft)
        self.accepted += len(sequence.tokens) - chunk.end - 1
        needed = self._blocks.pages_for(len(sequence.tokens))
        self._blocks.release(sequence.pages[needed:])
        del sequence.pages[needed:]

    def _guess(self, sequence: Sequence, most: int) -> tuple[list[int], list[float]]:
        if sequence.lookup is None or sequence.sampling is None:
            return [], []
        return sequence.lookup.guess(self._odds, min(most, sequence.sampling.max_tokens - sequence.generated - 1))

    def _with_pages(self, sequence: Sequence, draft: list[int]) -> tuple[int, ...]:
        """The draft, cut to the pages at hand where none is free for all of it."""
        missing = self._blocks.pages_for(len(sequence.tokens) + len(draft)) - len(sequence.pages)
        if missing <= self._blocks.free:
            sequence.pages += self._blocks.allocate(max(0, missing))
        return tuple(draft[: len(sequence.pages) * self._blocks.page_tokens - len(sequence.tokens)])
