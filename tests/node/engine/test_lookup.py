"""What a sequence's own text suggests to follow."""

import random

import pytest

from openlora.node.engine.lookup import LEAST_CHANCE, LONGEST, Lookup, Odds


def guess(tokens: list[int], most: int = 4) -> list[int]:
    return Lookup(tokens, len(tokens)).guess(Odds(), most)[0]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([5], []),
        ([1, 2, 3], []),
        ([1, 2, 3, 9, 1, 2], [3, 9, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # after the latest occurrence; what follows the end repeats too
        ([1, 2, 3, 8, 2, 4, 1, 2], [3, 8, 2, 4]),  # two tokens count before one
        ([7, 2, 3, 9, 5, 2], [3, 9, 5, 2]),  # else one
        ([6, 6], [6, 6, 6, 6]),
    ],
)
def test_what_followed_is_expected_to_follow(tokens: list[int], expected: list[int]) -> None:
    assert guess(tokens) == expected


def test_chances_rise_with_the_match_and_fall_with_each_token() -> None:
    odds, tokens = Odds(), [1, 2, 3, 4, 5, 6, 1, 2, 3]
    _, chances = Lookup(tokens, 9).guess(odds, 3)
    assert chances == pytest.approx([odds.of(3), odds.of(3) * odds.of(4), odds.of(3) * odds.of(4) * odds.of(5)])
    assert odds.of(1) < odds.of(3) < odds.of(LONGEST) == odds.of(1000)


def test_a_match_is_followed_while_it_is_right() -> None:
    """Where two occurrences differ later, the one that was right so far counts, not the latest of its last tokens."""
    odds, tokens = Odds(), [1, 2, 3, 4, 5, 6, 7, 3, 4, 9, 1, 2]
    lookup = Lookup(tokens, len(tokens))
    assert lookup.guess(odds, 3)[0] == [3, 4, 5]
    tokens += [3, 4]
    assert lookup.guess(odds, 2)[0] == [5, 6]
    tokens += [9]
    assert lookup.guess(odds, 2)[0] == [1, 2]


def test_odds_are_those_seen_lately() -> None:
    odds = Odds()
    for _ in range(2_000):
        odds.see(3, right=False)
    assert odds.of(3) < 0.01
    assert odds.of(2) > 0.5
    for _ in range(500):
        odds.see(3, right=True)
    assert odds.of(3) > 0.8


def test_what_was_expected_in_vain_is_soon_expected_no_more() -> None:
    rng, odds = random.Random(0), Odds()
    tokens = rng.choices(range(20), k=50)
    lookup = Lookup(tokens, len(tokens))
    for _ in range(400):
        lookup.guess(odds, 4)
        tokens.append(rng.randrange(20))
    assert odds.of(1) < LEAST_CHANCE
    assert odds.of(2) < LEAST_CHANCE


def test_a_prompt_teaches_nothing_about_answers() -> None:
    odds = Odds()
    Lookup([1, 2, 3] * 50, 150).guess(odds, 4)
    assert odds.of(LONGEST) == Odds().of(LONGEST)


def test_it_is_the_same_however_often_it_was_asked() -> None:
    rng = random.Random(1)
    tokens = rng.choices(range(6), k=30)
    asked, odds = Lookup(tokens, 30), Odds()
    for _ in range(200):
        tokens.append(rng.randrange(6))
        if rng.random() < 0.3:
            found = asked.guess(odds, 5)
            once = Odds()
            assert Lookup(list(tokens), 30).guess(once, 5) == found
            assert [once.of(n) for n in range(9)] == [odds.of(n) for n in range(9)]


def test_memory_grows_with_the_tokens_at_most() -> None:
    tokens = random.Random(2).choices(range(50_000), k=3_000)
    lookup = Lookup(tokens, 100)
    lookup.guess(Odds(), 4)
    assert len(lookup._after) <= 2 * len(tokens)
