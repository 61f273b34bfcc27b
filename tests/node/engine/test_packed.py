"""Weights packed and restored are the same bits, whatever they are, and so is what is computed with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openlora.kernels.cpu import library as c
from openlora.kernels.cpu.build import library_path
from tests.node.engine.units import with_unit

BLOCK = 1536  # numbers
MOST_PATCHED = 64  # one number in so many may have a rare upper byte
COMMON = torch.tensor([sign | upper for sign in (0, 0x80) for upper in range(0x38, 0x40)])  # sixteen upper bytes


Repack = Callable[[Tensor], tuple[int, Tensor]]  # the bytes they take, 0 where they stay as they are, and the restored


def repack_of(kernels: Path, unit: str) -> Repack:
    with with_unit(unit):
        library = c.load_library(library_path(kernels))

    def repack(numbers: Tensor) -> tuple[int, Tensor]:
        restored = torch.full_like(numbers, 1.0)
        bytes_taken = library.openlora_repack(unit.encode(), numbers.data_ptr(), len(numbers), restored.data_ptr())
        return bytes_taken, restored

    return repack


@pytest.fixture(scope="module", params=["avx512", "amx"])
def repack(kernels: Path, request: pytest.FixtureRequest) -> Repack:
    return repack_of(kernels, request.param)


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)


def same_bits(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.view(torch.int16), y.view(torch.int16))


def common(count: int) -> Tensor:
    """Bits of numbers with sixteen upper bytes."""
    rng = torch.Generator().manual_seed(count)
    upper = COMMON[torch.randint(len(COMMON), (count,), generator=rng)]
    return upper << 8 | torch.randint(256, (count,), generator=rng)


def test_every_number_survives(repack: Repack) -> None:
    """All 65,536 of them, infinities and NaN among them, as many at a time as the list of rare ones takes."""
    every = torch.arange(1 << 16)
    for first in range(0, 1 << 16, MOST_PATCHED * BLOCK // MOST_PATCHED):
        bits = common(MOST_PATCHED * BLOCK)
        places = torch.randperm(len(bits), generator=torch.Generator().manual_seed(first))[:BLOCK]
        some = every[first : first + BLOCK]
        bits[places[: len(some)]] = some
        bytes_taken, restored = repack(from_bits(bits))
        assert 0 < bytes_taken < len(bits) * 2 * 0.82
        assert same_bits(restored, from_bits(bits)), hex(first)


@pytest.mark.parametrize("count", [BLOCK, 3 * BLOCK, 18 * BLOCK, 48 * BLOCK])
def test_what_the_table_holds_takes_three_quarters(repack: Repack, count: int) -> None:
    numbers = from_bits(common(count))
    bytes_taken, restored = repack(numbers)
    assert bytes_taken == count * 3 // 2 + 64  # with its table, and the end of an empty list
    assert same_bits(restored, numbers)


@pytest.mark.parametrize("spread", [0.0, 1e-30, 0.02, 1.0, 1e30])
def test_normal_numbers_survive(repack: Repack, spread: float) -> None:
    numbers = (torch.randn(18 * BLOCK, generator=torch.Generator().manual_seed(1)) * spread).bfloat16()
    bytes_taken, restored = repack(numbers)
    assert 0 < bytes_taken < numbers.nbytes * 0.76
    assert same_bits(restored, numbers)


@pytest.mark.parametrize("rare", [0, 1, 2 * BLOCK // MOST_PATCHED, 2 * BLOCK // MOST_PATCHED + 1, 2 * BLOCK])
def test_rare_upper_bytes_are_listed_up_to_a_limit(repack: Repack, rare: int) -> None:
    """At the beginning, so that one group has many; beyond the limit the numbers stay as they are."""
    bits = common(2 * BLOCK)
    bits[:rare] = 0x7F00 - 0x100 * (torch.arange(rare) % 40)
    bytes_taken, restored = repack(from_bits(bits))
    if rare > 2 * BLOCK // MOST_PATCHED:
        assert bytes_taken == 0
    else:
        assert same_bits(restored, from_bits(bits))


def test_other_instructions_take_none(kernels: Path) -> None:
    assert repack_of(kernels, "plain")(torch.zeros(BLOCK, dtype=torch.bfloat16))[0] == 0
