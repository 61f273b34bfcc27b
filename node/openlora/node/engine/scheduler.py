"""Which tokens the next forward pass computes."""

from collections import deque
from collections.abc import Iterator, Set

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.fairness import FairShare
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.pace import Pace
from openlora.node.engine.parts import Parts
from openlora.node.engine.prefix_cache import PrefixCache
from openlora.node.engine.sequence import Chunk, Sequence
from openlora.node.engine.speculation import Speculation
from openlora.node.engine.waiting import Line, WaitingLines

Prompts = dict[str, dict[Line, deque[Sequence]]]  # by tenant and line, in order of arrival


class Scheduler:
    """Continuous batching under a budget of tokens a pass, evenly shared between tenants.

    *Pace.* Every sequence that decodes has its row in every pass. Prompts fill what is left, in chunks: up to
    `max_batch_tokens` where nothing decodes, else as many rows as `Pace` finds time for. A pass with prompts has no
    drafts: whoever reads answers would wait for both.

    *Order.* The next chunk, and the next to be admitted, belong to the tenant served least, and in it to the line (the
    requests for the same adapters) served least; a line is first come, first served. If the next one does not fit yet,
    the others wait for it, unless it would take its tenant above an even part of places and pages. A tenant below its
    part takes room, when it is its turn, from tenants above theirs.

    *Memory.* A sequence is admitted when there are pages for all its tokens, besides one for each that runs; decoding
    takes pages as it grows. When none is left, cached pages go first, then those of the youngest sequence of the tenant
    that holds most: it returns to its line and is computed again. The oldest sequence always goes on, so that, with
    `kv_tokens` at least the longest request, everything admitted finishes.
    """

    def __init__(self, limits: EngineLimits, blocks: BlockAllocator, row_block: int) -> None:
        """`row_block` as Runner has it."""
        self._limits = limits
        self._blocks = blocks
        self._tenants: FairShare[str] = FairShare()
        self._lines: dict[str, FairShare[Line]] = {}
        self._arrivals = 0
        self._blocked: Sequence | None = None  # whose turn it was in the last pass, and who did not fit
        self.cache = PrefixCache(blocks)
        self.pace = Pace(row_block)
        self.speculation = Speculation(blocks, self.pace)
        self.waiting = WaitingLines(limits)
        self.running: list[Sequence] = []  # in order of admission
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits into the empty cache. Raises Overloaded when its tenant's part of the queue is
        full."""
        self.waiting.check_room(sequence)
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._tenants.enter(sequence.tenant)
        self._lines.setdefault(sequence.tenant, FairShare()).enter(sequence.line)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a queued or running sequence, and release its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence is self._blocked:
            self._blocked = None
        self._tenants.leave(sequence.tenant)
        lines = self._lines[sequence.tenant]
        lines.leave(sequence.line)
        if not lines.present:
            del self._lines[sequence.tenant]

    def schedule(self) -> list[Chunk]:
        """The next pass: at most `max_batch_tokens` rows, pages provided. Empty only if there is nothing to do."""
        self._grow()
        self._give_way()
        decoding = [self._chunk(sequence, 1) for sequence in self.running if sequence.pending == 1]
        prompts = list(self._prompts(self._prompt_budget(len(decoding))))
        if prompts:
            return decoding + prompts
        return self.speculation.extend(decoding, self._limits.max_batch_tokens - len(decoding))

    def computed(self, chunks: list[Chunk]) -> None:
        """The pass is done: the chunks' keys and values are in the cache, but what those of drafts are worth is not
        known yet."""
        for chunk in chunks:
            chunk.sequence.computed = chunk.end
            self.cache.offer(chunk.sequence)

    def confirmed(self, chunks: list[Chunk]) -> None:
        """The sequences of chunks with drafts have got their tokens, of which all but the last are in the cache."""
        for chunk in chunks:
            sequence = chunk.sequence
            self.speculation.settle(chunk)
            sequence.computed = len(sequence.tokens) - 1
            self._charge(sequence, chunk.end, sequence.computed)
            self.cache.offer(sequence)

    def recompute(self, sequence: Sequence) -> None:
        """Compute a running sequence again from its beginning, and without drafts: one of them may have left NaN in its
        pages, where rows before it read it too."""
        sequence.lookup = None
        self.distrust(sequence)
        self._preempt(sequence)

    def distrust(self, sequence: Sequence) -> None:
        """Share no more what was computed for a running sequence."""
        self._blocks.forget(sequence.pages)

    def check_integrity(self) -> None:
        """Assert that every page is free, idle or held exactly as counted, and that the queues' sums are right."""
        self._blocks.check_integrity([sequence.pages for sequence in self.running])
        self.cache.check_integrity(self.running)
        for sequence in self.running:
            assert sequence.computed <= len(sequence.pages) * self._blocks.page_tokens, "tokens lie outside the pages"
        assert not any(sequence.pages or sequence.computed for sequence in self.waiting)
        self.waiting.check_integrity()
        live = [*self.running, *self.waiting]
        self._tenants.check_integrity(sequence.tenant for sequence in live)
        assert self._lines.keys() == {sequence.tenant for sequence in live}
        for tenant, lines in self._lines.items():
            lines.check_integrity(sequence.line for sequence in live if sequence.tenant == tenant)

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _prompt_budget(self, decoding: int) -> int:
        room = self._limits.max_batch_tokens - decoding
        if not decoding:
            return room
        places = self._limits.max_running - len(self.running)
        prompts = len(self.running) - decoding + min(places, len(self.waiting))
        return min(room, self.pace.prompt_rows(decoding, prompts))

    def _prompts(self, budget: int) -> Iterator[Chunk]:
        """Chunks of prompts, in the order of turns, as the budget lasts."""
        begun: Prompts = {}
        for sequence in self.running:
            if sequence.pending > 1:
                begun.setdefault(sequence.tenant, {}).setdefault(sequence.line, deque()).append(sequence)
        closed: set[str] = set()  # tenants of whom nobody is admitted in this pass
        while budget and (chosen := self._next(begun, closed)) is not None:
            if not chosen.pages and not self._admit(chosen):
                if self._parts().has_its_part(chosen):
                    closed.add(chosen.tenant)
                else:
                    self._blocked = chosen
                    closed.update(self.waiting.tenants)
                continue
            _take(begun, chosen)
            chunk = self._chunk(chosen, budget)
            budget -= chunk.length
            yield chunk

    def _next(self, begun: Prompts, closed: Set[str]) -> Sequence | None:
        """Whose turn it is, of the begun prompts and of those that wait, but of no `closed` tenant."""
        tenant = self._tenants.least([*begun, *(name for name in self.waiting.tenants if name not in closed)])
        if tenant is None:
            return None
        own = begun.get(tenant, {})
        waiting = () if tenant in closed else self.waiting.lines(tenant)
        line = self._lines[tenant].least([*own, *waiting])
        assert line is not None, "a tenant without a line has no turn"
        return own[line][0] if line in own else self.waiting.head(tenant, line)

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        """The sequence's next tokens, charged to its tenant unless they were before."""
        chunk = Chunk(sequence, sequence.computed, min(sequence.pending, budget))
        self._charge(sequence, chunk.start, chunk.end)
        return chunk

    def _charge(self, sequence: Sequence, start: int, end: int) -> None:
        if (tokens := end - max(start, sequence.charged)) > 0:
            self._tenants.charge(sequence.tenant, tokens)
            self._lines[sequence.tenant].charge(sequence.line, tokens)
            sequence.charged = end

    # ---- places and pages -------------------------------------------------------------------------------------------

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, if there is a place and memory."""
        if len(self.running) >= self._limits.max_running:
            return False
        cached = self.cache.take(sequence)
        missing = self._blocks.pages_for(len(sequence.tokens)) - len(cached)
        if missing + len(self.running) > self._blocks.available:
            self._blocks.release(cached)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.pages = cached + self._blocks.allocate(missing)
        sequence.computed = len(cached) * self._blocks.page_tokens
        sequence.offered = len(cached)
        self.cache.hit_tokens += sequence.computed
        return True

    def _grow(self) -> None:
        """Give every sequence that decodes the page its next token needs, the oldest first."""
        room = self._blocks.page_tokens
        short = [s for s in self.running if s.pending == 1 and len(s.tokens) > len(s.pages) * room]
        for sequence in sorted(short, key=lambda s: s.arrival):
            while sequence.pages and not self._blocks.available:
                self._preempt(self._parts().youngest_of_most())
            if sequence.pages:  # not preempted itself
                sequence.pages += self._blocks.allocate(1)

    def _give_way(self) -> None:
        """Make room for the one that did not fit in the last pass, if its tenant is below its part."""
        sequence, self._blocked = self._blocked, None
        if sequence is None or self._admit(sequence):
            return
        for giver in self._parts().givers(sequence):
            self._preempt(giver)
        self._admit(sequence)

    def _parts(self) -> Parts:
        return Parts(self.running, self._blocks, self._limits.max_running, self._tenants.present)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.put_back(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.pages)
        sequence.pages = []
        sequence.computed = sequence.offered = 0


def _take(prompts: Prompts, sequence: Sequence) -> None:
    """Strike a sequence off, if it is listed; a line or tenant that is done goes with it."""
    lines = prompts.get(sequence.tenant, {})
    if sequence.line in lines and lines[sequence.line][0] is sequence:
        lines[sequence.line].popleft()
        if not lines[sequence.line]:
            del lines[sequence.line]
        if not lines:
            del prompts[sequence.tenant]
