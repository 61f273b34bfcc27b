"""A scheduler driven without a model: passes that check what they are given and make up the next tokens.

Every slot of the cache remembers what was computed into it, as a hash of all that a key or value depends on; a pass
over tokens whose past is not exactly in its sequence's pages fails.
"""

from collections.abc import Callable

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import Sampling
from openlora.node.engine.pace import BLOCK
from openlora.node.engine.prefix_cache import root_key
from openlora.node.engine.sampling import confirmed
from openlora.node.engine.scheduler import Scheduler
from openlora.node.engine.sequence import Chunk, Sequence
from tests.node.engine.drafts import Told

VOCABULARY = 7


def request(
    name: str,
    prompt: int | list[int],
    output: int,
    *,
    tenant: str = "",
    line: tuple[str, ...] = (),
    shared: bool = False,
    wrong: float | None = None,
) -> Sequence:
    """A prompt of given tokens, or of as many; `shared`: found in, and offered to, the prefix cache; `wrong`: how often
    a draft's token is (None: there are no drafts)."""
    tokens = list(range(prompt)) if isinstance(prompt, int) else list(prompt)
    root = root_key(b"base", tenant, [(key.encode(), 1.0) for key in line]) if shared else None
    sequence = Sequence(name, tokens, len(tokens), Sampling(max_tokens=output), tenant=tenant, line=line, root=root)
    if wrong is not None:
        sequence.lookup = Told(
            tokens, lambda so_far: pasts(sequence, so_far)[-1] % VOCABULARY, wrong=wrong, vocabulary=VOCABULARY
        )
    return sequence


def pasts(sequence: Sequence, tokens: list[int]) -> list[int]:
    """For each position, a hash of what its key depends on: the tokens up to it, tenant and adapters."""
    past, found = hash((sequence.tenant, sequence.line)), []
    for token in tokens:
        past = hash((past, token))
        found.append(past)
    return found


def pass_s(chunks: list[Chunk]) -> float:
    """What a pass of a small model takes on two cores."""
    return 0.005 + 0.0007 * sum(chunk.length + len(chunk.draft) for chunk in chunks)


class Passes:
    """Runs a scheduler pass by pass, each as long as `seconds` says."""

    def __init__(
        self,
        limits: EngineLimits,
        *,
        check: bool = True,
        seconds: Callable[[list[Chunk]], float] = pass_s,
        timed: bool = True,
    ) -> None:
        """`timed`: the scheduler knows already what decoding takes, and need not look."""
        self.limits = limits
        self._seconds = seconds
        self.blocks = BlockAllocator(limits.kv_tokens // limits.page_tokens, limits.page_tokens)
        self.scheduler = Scheduler(limits, self.blocks, BLOCK)
        self.finished: list[str] = []
        for size in range(limits.max_running.bit_length()) if timed else ():
            decoding = [Chunk(request("before", 2, 1), 1, 1)] * 2**size
            self.scheduler.pace.learn(decoding, seconds(decoding))
        self._check_all = check
        self._cache: dict[tuple[int, int], int] = {}

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.scheduler.add(sequence)

    def step(self) -> list[Chunk]:
        chunks = self.scheduler.schedule()
        if self._check_all:
            self._check(chunks)
            for chunk in chunks:
                self._compute(chunk)
        self.scheduler.computed(chunks)
        if chunks:
            self.scheduler.pace.learn(chunks, self._seconds(chunks))
        answering = [chunk for chunk in chunks if chunk.outputs]
        for chunk in answering:
            chunk.sequence.tokens.extend(confirmed(chunk.draft, self._drawn(chunk)))
        self.scheduler.confirmed([chunk for chunk in answering if chunk.draft])
        for chunk in answering:
            self._finish(chunk.sequence)
        if self._check_all:
            self.scheduler.check_integrity()
        return chunks

    def run(self) -> None:
        while self.step():
            pass

    def shapes(self) -> list[tuple[str, int]]:
        """A step's chunks: whose, and how long."""
        return [(chunk.sequence.request_id, chunk.length) for chunk in self.step()]

    def _check(self, chunks: list[Chunk]) -> None:
        assert chunks or not self.scheduler.waiting
        assert sum(len(chunk.tokens) for chunk in chunks) <= self.limits.max_batch_tokens
        assert len(self.scheduler.running) <= self.limits.max_running
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.length >= 1
            assert chunk.start == chunk.sequence.computed
            assert chunk.end + len(chunk.draft) <= len(chunk.sequence.pages) * self.limits.page_tokens
            assert not chunk.draft or chunk.end == len(chunk.sequence.tokens)

    def _compute(self, chunk: Chunk) -> None:
        size = self.limits.page_tokens
        tokens = [*chunk.sequence.tokens[: chunk.end], *chunk.draft]
        for position, past in enumerate(pasts(chunk.sequence, tokens)):
            slot = chunk.sequence.pages[position // size], position % size
            if position >= chunk.start:
                self._cache[slot] = past
            assert self._cache[slot] == past, f"{chunk.sequence.request_id} reads what is not its own"

    def _drawn(self, chunk: Chunk) -> list[int]:
        """The token after each of the chunk's output rows."""
        if not self._check_all:
            return [0] * chunk.outputs
        known = pasts(chunk.sequence, [*chunk.sequence.tokens, *chunk.draft])
        return [past % VOCABULARY for past in known[-chunk.outputs :]]

    def _finish(self, sequence: Sequence) -> None:
        assert sequence.sampling is not None
        assert sequence.generated <= sequence.sampling.max_tokens
        if sequence.generated == sequence.sampling.max_tokens:
            self.finished.append(sequence.request_id)
            self.scheduler.remove(sequence)
