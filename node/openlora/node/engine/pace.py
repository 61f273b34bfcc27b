"""How many rows of prompts and of drafts a pass may hold beside the requests that decode."""

from collections import deque
from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import median

from openlora.node.engine.sequence import Chunk

LEAST_SHARE = 0.9  # what prompts may add, however few, to the time that the decode rows take by themselves
LEAST_ROWS = 8  # of a prompt, so that it always comes to its end
LOOK_EVERY = 16  # passes with prompts: then one goes without, to see again what decoding takes by itself
BLOCK = 16  # rows that matrix units compute together, so that a further one is nearly free until they are full
MOST_ADDED = 1.5  # times calm that drafts may add to a pass, for those who have none
MARGIN = 1.5  # a draft must be expected to save so many times what it takes: all wait for it, and one gains
UNTRIED = 0.3  # of a row's part of a pass of full blocks: what a row of a draft adds at least, before any was seen
DRAFTS_LOOK_EVERY = 32  # passes with drafts
FORGET = 128  # passes after which the oldest of those with drafts are forgotten
_LEAST_ADDED = 0.01  # of calm: it is never free
_FOLLOWED = 0.5  # of what passes take longer or shorter than was foreseen, as a power of it
_ODD = 0.3  # in the same logarithms: a pass that is further off says no more than this
_LATELY = 0.125  # of a mean: the latest pass
_DRAFTS_SEEN = 3  # remembered; the median counts, so that one odd pass changes nothing


class Pace:
    """Learns what the next pass may hold from the times of those before alone.

    A pass of n decode rows and p prompt rows is estimated at calm(n) + p · row seconds, where calm is one figure for
    each power of two of rows. Passes of decode rows alone correct calm, and passes with prompts correct row, by a part
    of the *factor* by which the estimate was off: a machine that slows down does so for all its work, and if the whole
    difference were charged to a few prompt rows, they would seem free in one pass and dear in the next.

    Beside w prompts, begun or ready to begin, the next pass may last calm(n) · (1 + max(LEAST_SHARE, w · (w + 1) / n)),
    since w prompts one after another wait 1 + 2 + … + w times as long as one, and a request that waits counts as two
    that read. So one prompt beside many readers less than doubles the time between their tokens and takes about twice
    its time alone, and many prompts do not wait for a few readers. Prompts that take the place of drafts may add what
    those lately did.

    A row of a draft, which is right with chance q, saves q · calm(n) / n seconds. How long passes with drafts last is
    learnt for each number of blocks of rows, and forgotten after a while: otherwise what was dear once would never be
    tried again. A pass of r rows that was not tried is taken to last r · row at least: no row is computed faster than
    a prompt's.
    """

    def __init__(self, row_block: int = BLOCK) -> None:
        """`row_block` as Runner has it."""
        self._row_block = row_block
        self._calm_s: dict[int, float] = {}  # by the bit length of the number of decode rows
        self._calm_rows: dict[int, int] = {}  # of which the last one had so many
        self._drafts_s: dict[tuple[int, int], deque[float]] = {}  # by the same and by the number of blocks of rows
        self._row_s = 0.0  # what a row of a prompt adds; 0: none was seen
        self._calm_then_s: dict[int, float] = {}  # calm as it was when that was last seen
        self._added = 0.0  # what drafts have added of late, as a share of calm
        self._passes = 0
        self._passes_with_drafts = 0  # since a look for their sake
        self._passes_with_prompts = 0  # since a look for theirs
        self._look_due = False  # the next pass is to have decode rows alone

    def prompt_rows(self, decoding: int, prompts: int) -> int:
        """How many rows of `prompts` prompts may stand beside `decoding` > 0 decode rows in the next pass. None where a
        look at the decode rows alone is due."""
        calm_s = self._calm_s.get(decoding.bit_length())
        if calm_s is None or self._look_due:
            return 0
        spare_s = calm_s * max(LEAST_SHARE, self._added, prompts * (prompts + 1) / decoding)
        rows = int(spare_s / self._row_s) if self._row_s else 0
        return max(LEAST_ROWS, rows - (decoding + rows) % self._row_block)  # one begun costs what a full one does

    def draft_rows(self, decoding: int, chances: Sequence[float]) -> int:
        """How many rows of drafts should stand beside `decoding` > 0 decode rows in the next pass, to save most: the
        first ones of those that are right with `chances`, which fall. None where a look at the decode rows alone is
        due."""
        if decoding.bit_length() not in self._calm_s or self._look_due:
            return 0
        added = self._added_by_blocks(decoding)
        row = self._row_s / self._calm_then_s[decoding.bit_length()]  # a machine slows down for all its work
        best, most, saved = 0, 0.0, 0.0
        for rows, chance in enumerate(chances, 1):
            saved += chance / decoding
            if (decoding + rows) % BLOCK == 0 or rows == len(chances):
                least = max(UNTRIED * rows / max(decoding, BLOCK), (decoding + rows) * row - 1)
                share = _expected(added, decoding, rows, least)
                gain = saved - MARGIN * share
                if gain > most and share <= MOST_ADDED:
                    best, most = rows, gain
        return best

    def learn(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A pass over `chunks` has taken `seconds`."""
        decoding = sum(chunk.length == 1 for chunk in chunks)
        prompt_rows = sum(chunk.length for chunk in chunks) - decoding
        draft_rows = sum(len(chunk.draft) for chunk in chunks)
        if prompt_rows:
            self._learn_prompts(decoding, prompt_rows, seconds)
        elif draft_rows:
            self._learn_drafts(decoding, draft_rows, seconds)
        else:
            self._look(decoding, seconds)
            self._added -= _LATELY * self._added
        self._passes += 1
        if self._passes % FORGET == 0:
            self._forget()

    def _added_by_blocks(self, decoding: int) -> dict[int, list[float]]:
        """What drafts have added to passes, as shares of calm, by the number of blocks."""
        size = decoding.bit_length()
        growth = (1 + decoding / self._calm_rows[size]) / 2  # half of a pass is taken to grow with its rows
        calm_s = self._calm_s[size] * growth
        return {
            key[1]: [max(seconds / calm_s - 1, _LEAST_ADDED) for seconds in passes_s]
            for key, passes_s in self._drafts_s.items()
            if key[0] == size
        }

    def _learn_drafts(self, decoding: int, rows: int, seconds: float) -> None:
        calm_s = self._calm_s.get(decoding.bit_length(), seconds)
        self._added += _LATELY * (min(MOST_ADDED, seconds / calm_s - 1) - self._added)
        key = decoding.bit_length(), _blocks(decoding, rows)
        self._drafts_s.setdefault(key, deque(maxlen=_DRAFTS_SEEN)).append(seconds)
        self._passes_with_drafts += 1
        if self._passes_with_drafts >= DRAFTS_LOOK_EVERY:
            self._passes_with_drafts, self._look_due = 0, True

    def _forget(self) -> None:
        for passes_s in self._drafts_s.values():
            passes_s.popleft()
        self._drafts_s = {key: passes_s for key, passes_s in self._drafts_s.items() if passes_s}

    def _learn_prompts(self, decoding: int, rows: int, seconds: float) -> None:
        size = max(decoding, 1).bit_length()  # without decode rows the weights are read all the same
        calm_s = self._calm_s.get(size, 0.0)
        if not self._row_s:
            self._row_s = max(seconds - calm_s, 0.0) / rows
        elif rows >= LEAST_ROWS:  # of fewer nothing is seen beside a pass's own ups and downs
            self._row_s *= _correction(seconds, calm_s + self._row_s * rows)
        self._calm_then_s = self._calm_s.copy()
        self._passes_with_prompts += 1
        if self._passes_with_prompts >= LOOK_EVERY:
            self._passes_with_prompts, self._look_due = 0, True

    def _look(self, decoding: int, seconds: float) -> None:
        """A machine that now takes less for decode rows is taken to do so for drafts, which are only known by being
        tried."""
        size = decoding.bit_length()
        before_s = self._calm_s.get(size, seconds)
        self._look_due = abs(log(seconds / before_s)) > _ODD  # one that is far off is made sure of
        change = _correction(seconds, before_s)
        self._calm_s[size] = before_s * change
        self._calm_then_s.setdefault(size, before_s)
        self._calm_rows[size] = decoding
        for key, passes_s in self._drafts_s.items():
            if key[0] == size and change < 1:
                self._drafts_s[key] = deque((pass_s * change for pass_s in passes_s), maxlen=_DRAFTS_SEEN)


def _correction(seconds: float, foreseen_s: float) -> float:
    """The factor by which what was foreseen changes after a pass that took `seconds`."""
    return exp(_FOLLOWED * max(-_ODD, min(_ODD, log(seconds / foreseen_s))))


def _blocks(decoding: int, drafts: int) -> int:
    return -(-(decoding + drafts) // BLOCK)


def _expected(added: Mapping[int, Sequence[float]], decoding: int, rows: int, least: float) -> float:
    """What `rows` rows of drafts will add: the median of what was seen for as many blocks, and of a guess, which is
    `least` or what the cheapest rows of other passes say."""
    own = _blocks(decoding, rows)
    room = {blocks: blocks * BLOCK - decoding for blocks in added if blocks != own}
    others = [median(added[blocks]) / drafts for blocks, drafts in room.items() if drafts > 0]
    return median([*added.get(own, ()), max(least, rows * min(others, default=0.0))])
