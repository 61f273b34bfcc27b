"""What is likely to follow in a sequence, by what followed in it before.

Known as prompt lookup, or speculation by n-grams: answers repeat names, quotations, code and themselves.
"""

from collections.abc import Sequence

LONGEST = 8  # tokens that are compared; a longer match promises no more
LEAST_CHANCE = 0.2  # of a guess that is worth telling
_FIRST_TRIES = 8.0  # what the first guess at the odds is worth
_REMEMBERED = 256.0  # tries of each length


class Odds:
    """How often the token that a match suggested was the next one, by the match's length, lately and in all sequences.
    Before anything was seen, n / (n + 1)."""

    def __init__(self) -> None:
        self._tries = [_FIRST_TRIES] * (LONGEST + 1)
        self._right = [_FIRST_TRIES * length / (length + 1) for length in range(LONGEST + 1)]

    def of(self, matched: int) -> float:
        length = min(matched, LONGEST)
        return self._right[length] / self._tries[length]

    def see(self, matched: int, right: bool) -> None:
        length = min(matched, LONGEST)
        if self._tries[length] >= _REMEMBERED:
            self._tries[length] /= 2
            self._right[length] /= 2
        self._tries[length] += 1
        self._right[length] += right


class Lookup:
    """Follows the latest earlier occurrence of a sequence's last tokens for as long as it is right, and then looks for
    another. A token costs the same time and memory however long the sequence is."""

    def __init__(self, tokens: Sequence[int], prompt_length: int) -> None:
        """`tokens` is read as it grows; the first `prompt_length` are nobody's guess."""
        self._tokens = tokens
        self._prompt_length = prompt_length
        self._read = 0
        self._after: dict[int | tuple[int, int], int] = {}  # the position after the latest one or two such tokens
        self._next = 0  # where the token lies that is expected next
        self._matched = 0  # tokens before it that are also the sequence's last; 0: nothing is expected

    def guess(self, odds: Odds, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens that are expected next, and for each the chance that all up to it are right. What became
        of earlier expectations is told to `odds`."""
        self._read_on(odds)
        known, chance = len(self._tokens), 1.0
        tokens: list[int] = []
        chances: list[float] = []
        for i in range(most if self._matched else 0):
            chance *= odds.of(self._matched + i)
            if chance < LEAST_CHANCE:
                break
            at = self._next + i
            tokens.append(self._tokens[at] if at < known else tokens[at - known])
            chances.append(chance)
        return tokens, chances

    def _read_on(self, odds: Odds) -> None:
        for position in range(self._read, len(self._tokens)):
            token = self._tokens[position]
            pair = self._tokens[position - 1] if position else -1, token
            if position >= self._prompt_length - 1:
                self._follow(position, pair, odds)
            self._after[token] = self._after[pair] = position + 1
        self._read = len(self._tokens)

    def _follow(self, position: int, pair: tuple[int, int], odds: Odds) -> None:
        """The token at `position`, with the one before it, is known now."""
        if self._matched:
            right = self._tokens[self._next] == pair[1]
            odds.see(self._matched, right)
            if right:
                self._next += 1
                self._matched += 1
                return
        self._next = self._after.get(pair) or self._after.get(pair[1], 0)
        self._matched = 0
        while (
            self._matched < min(self._next, LONGEST)
            and self._tokens[self._next - 1 - self._matched] == self._tokens[position - self._matched]
        ):
            self._matched += 1
