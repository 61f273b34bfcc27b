"""How much of prompts a pass may take along, so that those who read their answers notice little of it."""

from collections.abc import Sequence

from openlora.node.engine.sequence import Chunk

LEAST_SHARE = 0.85  # of the time that the decode rows take by themselves: what prompts may add, however few they are
WAITING = 2  # a prompt that waits counts as so many readers
LEAST_ROWS = 8  # of a prompt, so that it always comes to its end
LOOK_EVERY = 32  # passes: then one goes without prompts, to see again what decoding takes by itself
_CAREFUL, _BOLD = 0.25, 0.1  # how far an estimate follows what speaks for shorter passes, and for longer ones
_OUTLIER = 2.0  # times what was known: more is the machine's affair, not the pass's


class Pace:
    """Learns from passes what the next one may hold: machine, model and adapters are known by their times alone.

    A pass of n decode rows and p prompt rows is taken to last calm(n) + p · row seconds; calm is what passes without
    prompts have lasted, one figure a power of two of rows. Beside w prompts, begun or ready to begin, the next pass may
    last calm(n) · (1 + max(LEAST_SHARE, WAITING · w / n)). So one prompt beside many readers less than doubles the time
    between their tokens and takes about twice its time alone, and many prompts do not wait for one reader.
    """

    def __init__(self) -> None:
        self._calm_s: dict[int, float] = {}  # by the bit length of the number of decode rows
        self._row_s = 0.0  # what a row of a prompt adds
        self._passes_with_prompts = 0  # since one without

    def prompt_rows(self, decoding: int, prompts: int) -> int:
        """How many rows of `prompts` prompts may stand beside `decoding` > 0 decode rows in the next pass. None where a
        look at the decode rows alone is due."""
        calm_s = self._calm_s.get(decoding.bit_length())
        if calm_s is None or self._passes_with_prompts >= LOOK_EVERY:
            return 0
        spare_s = calm_s * max(LEAST_SHARE, WAITING * prompts / decoding)
        return max(LEAST_ROWS, int(spare_s / self._row_s) if self._row_s else 0)

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A pass over `chunks` has taken `seconds`."""
        decoding = sum(chunk.length == 1 for chunk in chunks)
        prompt_rows = sum(chunk.length for chunk in chunks) - decoding
        size = max(decoding, 1).bit_length()  # without decode rows the weights are read all the same
        if not prompt_rows:
            self._passes_with_prompts = 0
            self._calm_s[size] = _towards(self._calm_s.get(size, seconds), seconds, rising=_BOLD)
            return
        self._passes_with_prompts += 1
        if prompt_rows >= LEAST_ROWS:  # of fewer nothing is seen beside a pass's own ups and downs
            row_s = max(seconds - self._calm_s.get(size, 0.0), 0.0) / prompt_rows
            self._row_s = _towards(self._row_s or row_s, row_s, rising=_CAREFUL)


def _towards(known: float, seen: float, *, rising: float) -> float:
    rate = rising if seen > known else _CAREFUL
    return known + rate * (min(seen, _OUTLIER * known) - known)
