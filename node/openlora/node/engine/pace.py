"""How much of prompts a pass may take along, so that those who read their answers notice little of it."""

from collections import deque
from collections.abc import Sequence
from statistics import median

from openlora.node.engine.sequence import Chunk

LEAST_SHARE = 0.85  # of the time that the decode rows take by themselves: what prompts may add, however few they are
LEAST_ROWS = 8  # of a prompt, so that it always comes to its end
LOOK_EVERY = 32  # passes: then LOOKS go without prompts, to see again what decoding takes by itself
LOOK_AGAIN = 4  # passes: as soon if one of them took much longer than foreseen, for then the machine may be another
LOOKS = 2  # the majority of what is remembered of passes without prompts
_SURPRISE = 1.4  # times what was foreseen
_CALM_SEEN, _ROWS_SEEN = 3, 5  # what is remembered; of it the median counts, so that one odd pass changes nothing


class Pace:
    """Learns from passes what the next one may hold: machine, model and adapters are known by their times alone.

    A pass of n decode rows and p prompt rows is taken to last calm(n) + p · row seconds; calm is what passes without
    prompts have lasted, one figure a power of two of rows. Both are medians of the last few, since single passes are
    late for reasons of the machine's own. Beside w prompts, begun or ready to begin, the next pass may last
    calm(n) · (1 + max(LEAST_SHARE, w · (w + 1) / n)), for w prompts one after another wait 1 + 2 + … + w times as
    long as one, and whoever waits counts as two readers. So one prompt beside many readers less than doubles the time
    between their tokens and takes about twice its time alone, and many prompts do not wait for a few readers.
    """

    def __init__(self) -> None:
        self._calm_s: dict[int, deque[float]] = {}  # by the bit length of the number of decode rows
        self._row_s: deque[float] = deque(maxlen=_ROWS_SEEN)  # what a row of a prompt adds
        self._passes_with_prompts = 0  # since the last look
        self._surprised = False  # since then
        self._looks = 0  # passes without prompts that are due

    def prompt_rows(self, decoding: int, prompts: int) -> int:
        """How many rows of `prompts` prompts may stand beside `decoding` > 0 decode rows in the next pass. None where a
        look at the decode rows alone is due."""
        calm_s = _median(self._calm_s.get(decoding.bit_length()))
        if not calm_s or self._looks:
            return 0
        row_s = _median(self._row_s)
        spare_s = calm_s * max(LEAST_SHARE, prompts * (prompts + 1) / decoding)
        return max(LEAST_ROWS, int(spare_s / row_s) if row_s else 0)

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A pass over `chunks` has taken `seconds`."""
        decoding = sum(chunk.length == 1 for chunk in chunks)
        prompt_rows = sum(chunk.length for chunk in chunks) - decoding
        size = max(decoding, 1).bit_length()  # without decode rows the weights are read all the same
        if not prompt_rows:
            self._look(self._calm_s.setdefault(size, deque(maxlen=_CALM_SEEN)), seconds)
            return
        calm_s, row_s = _median(self._calm_s.get(size)), _median(self._row_s)
        if prompt_rows >= LEAST_ROWS:  # of fewer nothing is seen beside a pass's own ups and downs
            self._surprised |= row_s > 0 and seconds > _SURPRISE * (calm_s + row_s * prompt_rows)
            self._row_s.append(max(seconds - calm_s, 0.0) / prompt_rows)
        self._passes_with_prompts += 1
        if self._passes_with_prompts >= (LOOK_AGAIN if self._surprised else LOOK_EVERY):
            self._passes_with_prompts, self._surprised, self._looks = 0, False, LOOKS

    def _look(self, calm: deque[float], seconds: float) -> None:
        """A machine that now takes longer for decode rows is taken to do so for prompts."""
        before_s = _median(calm)
        calm.append(seconds)
        if before_s:
            self._row_s = deque((row_s * _median(calm) / before_s for row_s in self._row_s), maxlen=_ROWS_SEEN)
        self._looks = max(0, self._looks - 1)


def _median(seen: Sequence[float] | None) -> float:
    """0 where nothing was seen."""
    return median(seen) if seen else 0.0
