"""Drafts whose right and wrong tokens a test decides, and an engine that always computes them."""

import random
from collections.abc import Callable, Sequence

from openlora.node.engine.engine import Engine
from openlora.node.engine.lookup import Lookup, Odds
from openlora.node.engine.pace import Pace
from openlora.node.engine.speculation import Speculation


class Told(Lookup):
    """Knows what follows, and tells it with mistakes."""

    def __init__(
        self, tokens: Sequence[int], truth: Callable[[Sequence[int]], int], *, wrong: float, vocabulary: int
    ) -> None:
        """`truth`: the token after some; `wrong`: how often another one is told."""
        super().__init__(tokens, len(tokens))
        self._truth = truth
        self._wrong = wrong
        self._vocabulary = vocabulary
        self._rng = random.Random(len(tokens))

    def guess(self, odds: Odds, most: int) -> tuple[list[int], list[float]]:
        told: list[int] = []
        for _ in range(most):
            token = self._truth([*self._tokens, *told])
            mistake = self._rng.random() < self._wrong
            told.append((token + self._rng.randrange(1, self._vocabulary)) % self._vocabulary if mistake else token)
        return told, [0.9**i for i in range(1, len(told) + 1)]


class Eager(Pace):
    """Finds time for every draft."""

    def draft_rows(self, decoding: int, chances: Sequence[float]) -> int:
        return len(chances)


def always_draft(engine: Engine) -> None:
    engine._scheduler.speculation = Speculation(engine._blocks, Eager())


def tell(engine: Engine, name: str, answer: Sequence[int], *, wrong: float) -> None:
    """Let drafts of a submitted request come from its answer."""
    sequence = engine._sequences[name]
    whole = [*sequence.tokens, *answer]
    sequence.lookup = Told(
        sequence.tokens, lambda tokens: whole[len(tokens)], wrong=wrong, vocabulary=engine.info.vocab_size
    )
