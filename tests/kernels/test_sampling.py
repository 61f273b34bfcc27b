"""sample, and the counter-based generator below it."""

import math

import pytest
import torch
from torch import Tensor

from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.reference import gumbel, philox4x32_10

OPS = Ops(BACKENDS["reference"])

# Known answers of Random123's own test file kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def draw(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, first: int = 0
) -> list[int]:
    """One token a row, all rows alike but for their positions first, first + 1, …"""
    rows = len(logits)
    return OPS.sample(
        logits,
        torch.full((rows,), temperature, dtype=torch.float64),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.full((rows,), seed),
        torch.arange(first, first + rows),
    ).tolist()


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = philox4x32_10((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert tuple(int(word) for word in words) == result


def test_gumbel_follows_from_the_first_word() -> None:
    seed, position, token = 0x299F31D0A4093822, 77, 4242
    word = philox4x32_10(
        (torch.tensor(position), torch.tensor(token), torch.tensor(0), torch.tensor(0)),
        (torch.tensor(0xA4093822), torch.tensor(0x299F31D0)),  # the seed's low word first
    )[0]
    expected = -math.log(-math.log((int(word) + 0.5) / 2**32))
    found = gumbel(torch.tensor(seed), torch.tensor(position), torch.tensor([1, token]))
    assert float(found[1]) == pytest.approx(expected, rel=1e-14)


def test_gumbel_of_a_seed_with_the_highest_bit_set() -> None:
    word = philox4x32_10(
        (torch.tensor(3), torch.tensor(5), torch.tensor(0), torch.tensor(0)),
        (torch.tensor(0xFFFFFFFE), torch.tensor(0xFFFFFFFF)),
    )[0]
    expected = -math.log(-math.log((int(word) + 0.5) / 2**32))
    found = gumbel(torch.tensor(-2), torch.tensor(3), torch.tensor([5]))
    assert float(found[0]) == pytest.approx(expected, rel=1e-14)


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    assert draw(logits, temperature=0.0) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    count = 1_500
    drawn = torch.tensor(draw(logits.expand(count, -1).contiguous(), temperature=temperature, seed=7))
    expected = (logits / temperature).softmax(0) * count
    chi_square = ((drawn.bincount(minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 99.9 % quantile at 4 degrees of freedom; the seed is fixed


def test_top_k_keeps_the_k_largest_and_the_lowest_ids_of_equals() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0]).expand(300, -1).contiguous()
    assert set(draw(logits, temperature=5.0, top_k=2)) == {0, 1}


def test_top_p_keeps_the_shortest_prefix_that_reaches_the_mass() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(500, -1).contiguous()
    assert set(draw(logits, top_p=0.39)) == {1}
    assert set(draw(logits, top_p=0.41)) == {1, 3}
    assert set(draw(logits, top_p=0.69)) == {1, 3}
    assert set(draw(logits, top_p=0.95)) == {0, 1, 2, 3}


def test_top_p_counts_the_mass_of_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(500, -1).contiguous()
    assert set(draw(logits, top_p=0.5)) == {0, 1}
    assert set(draw(logits, top_p=0.5, top_k=2)) == {0}  # 0.4 of 0.7


def test_tiny_temperatures_and_masses_are_greedy() -> None:
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(1)) * 1e4
    best = logits.argmax(dim=1).tolist()
    assert draw(logits, temperature=1e-300, top_p=0.5) == best
    assert draw(logits, top_p=1e-12) == best
    assert draw(logits, top_k=1, temperature=50.0) == best


def test_a_draw_depends_on_its_own_row_seed_and_position_alone() -> None:
    logits = torch.randn(30, 64, generator=torch.Generator().manual_seed(2))
    together = draw(logits, seed=9, first=100)
    alone = [draw(logits[i : i + 1], seed=9, first=100 + i)[0] for i in range(30)]
    assert together == alone
    assert draw(logits, seed=10, first=100) != together
    assert draw(logits, seed=9, first=500) != together


def test_refuses_what_it_is_not_defined_for() -> None:
    logits = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="top_p"):
        draw(logits, top_p=0.0)
    with pytest.raises(ValueError, match="negative"):
        draw(logits, temperature=-1.0)
    with pytest.raises(ValueError, match="logits"):
        draw(logits.bfloat16())
