"""Weights of fewer bits: how far rounding takes them, and what linear layers make of them."""

import pytest
import torch
from torch import Tensor

from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.quantised import dequantise, quantise_int4, quantise_int8, rows_of, stack
from openlora.kernels.types import CodedWeight, Int8Weight

OPS = Ops(BACKENDS["reference"])


def some_weight(out: int = 40, inputs: int = 72, seed: int = 0) -> Tensor:
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed))
    weight[3] = 0
    return weight


def test_int8_is_within_half_a_step() -> None:
    weight = some_weight()
    found = quantise_int8(weight)
    assert found.codes.abs().amax(dim=1)[[0, 1, 2, 4]].tolist() == [127] * 4
    assert not found.codes[3].any()
    assert bool(((dequantise(found) - weight).abs() <= found.scale.unsqueeze(1) * 0.5001).all())


def test_int4_is_nearer_than_even_spacing() -> None:
    """Steps of a fifteenth of a group's range leave errors of half a step at most; the fit then makes them smaller."""
    weight = some_weight()
    found = quantise_int4(weight)
    assert (found.codes.min(), found.codes.max()) == (0, 15)
    for group in range(2):
        part, codes = weight[:, 32 * group : 32 * group + 32], found.codes[:, 32 * group : 32 * group + 32]
        least, largest = part.aminmax(dim=1, keepdim=True)
        step = (largest - least) / 15
        even = (least + step * codes - part).abs()
        error = (dequantise(found)[:, 32 * group : 32 * group + 32] - part).abs()
        assert bool((even <= step * 0.5001).all())
        assert bool((error <= step * 0.75).all())
        assert float(error.square().sum()) < 0.999 * float(even.square().sum())
    assert not dequantise(found)[3].any()


def test_int4_finds_numbers_that_are_evenly_spaced_again() -> None:
    """As those of a checkpoint are that was 4 bits before; its last group is not full."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (5, 72), generator=rng, dtype=torch.int8)
    codes[:, [0, 1, 32, 33, 64, 65]] = torch.tensor([0, 15] * 3, dtype=torch.int8)
    scales, minima = torch.randn(2, 5, 3, generator=rng).half()
    weight = dequantise(CodedWeight(codes, scales.abs() + 0.01, minima, 4, 32))
    found = quantise_int4(weight)
    assert torch.equal(found.codes, codes)
    assert torch.allclose(dequantise(found), weight, atol=0.002, rtol=0.001)


def test_int4_keeps_numbers_that_are_all_alike() -> None:
    assert torch.equal(dequantise(quantise_int4(torch.full((2, 40), 0.375))), torch.full((2, 40), 0.375))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_does_not_depend_on_how_the_weight_is_stored(dtype: torch.dtype) -> None:
    weight = some_weight().to(dtype)
    assert torch.equal(quantise_int8(weight).codes, quantise_int8(weight.float()).codes)
    assert torch.equal(quantise_int4(weight).codes, quantise_int4(weight.float()).codes)


def coded(group: int, bits: int, minima: bool, seed: int, dtype: torch.dtype = torch.float16) -> CodedWeight:
    rng = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if minima else (-8, 8)
    if bits == 8:
        low, high = -128, 128
    scales = torch.randn(8, -(-64 // group), generator=rng).to(dtype)
    offsets = torch.randn(8, -(-64 // group), generator=rng).to(dtype) if minima else None
    codes = torch.randint(low, high, (8, 64), generator=rng, dtype=torch.int8)
    return CodedWeight(codes, scales, offsets, bits, group)


@pytest.mark.parametrize(
    ("one", "other", "bits"),
    [
        (coded(32, 4, False, 0), coded(32, 4, False, 1), 4),
        (coded(32, 4, True, 0), coded(32, 4, True, 1), 4),
        (coded(32, 4, True, 0), coded(32, 4, False, 1), 8),
        (coded(32, 4, True, 0, torch.float32), coded(16, 8, False, 1), 8),
        (coded(64, 8, False, 0), coded(32, 8, True, 1, torch.float32), 8),
    ],
)
def test_stacking_keeps_the_numbers(one: CodedWeight, other: CodedWeight, bits: int) -> None:
    both = stack([one, other])
    assert isinstance(both, CodedWeight)
    assert both.bits == bits
    assert torch.equal(dequantise(both), torch.cat((dequantise(one), dequantise(other))))
    assert torch.equal(dequantise(rows_of(both, slice(8, 16))), dequantise(other))


def test_kinds_that_have_no_common_form_are_not_stacked() -> None:
    weight = some_weight()
    with pytest.raises(ValueError, match="different kinds"):
        stack([weight, quantise_int8(weight)])
    with pytest.raises(ValueError, match="groups of"):
        stack([coded(32, 4, False, 0), coded(48, 4, False, 0)])


@pytest.mark.parametrize("rows", [1, 7])
def test_int8_products_are_those_of_the_numbers(rows: int) -> None:
    """An activation is within half of 1/8191 of its row's largest one."""
    weight, bias = quantise_int8(some_weight()), torch.arange(40.0)
    x = torch.randn(rows, 72, generator=torch.Generator().manual_seed(2))
    exact = (x.double() @ dequantise(weight).double().T + bias).float()
    bound = x.abs().amax(dim=1, keepdim=True) / 8191 * 0.51 * dequantise(weight).abs().sum(dim=1) + 1e-5
    assert bool(((OPS.linear(x, weight, bias) - exact).abs() <= bound).all())


def test_int8_products_of_integers_are_exact() -> None:
    rng = torch.Generator().manual_seed(3)
    codes = torch.randint(-127, 128, (5, 300), generator=rng, dtype=torch.int8)
    x = torch.randint(-8191, 8192, (4, 300), generator=rng).float()
    x[:, 0] = 8191
    found = OPS.linear(x, Int8Weight(codes, torch.ones(5)))
    assert torch.equal(found, (x.double() @ codes.double().T).float())


def test_a_row_that_is_not_finite_is_nan_and_alone_in_it() -> None:
    weight, x = quantise_int8(some_weight()), torch.ones(4, 72)
    x[1, 5], x[2, 6], x[3] = torch.nan, torch.inf, 0
    found = OPS.linear(x, weight)
    assert bool(found[1:3].isnan().all())
    assert torch.equal(found[0], OPS.linear(x[:1], weight)[0])
    assert not found[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coded_products_are_those_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    weight = coded(32, 4, True, 0)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    dense = dequantise(weight).to(dtype)
    for out_dtype in (dtype, torch.float32):
        assert torch.equal(OPS.linear(x, weight, None, out_dtype), OPS.linear(x, dense, None, out_dtype))


def test_weights_that_do_not_fit_are_refused() -> None:
    weight, groups = quantise_int8(some_weight()), coded(32, 4, True, 0)
    with pytest.raises(ValueError, match="does not fit x"):
        OPS.linear(torch.ones(1, 71), weight)
    with pytest.raises(ValueError, match="scale"):
        OPS.linear(torch.ones(1, 72), Int8Weight(weight.codes, weight.scale[1:]))
    with pytest.raises(ValueError, match="scales"):
        OPS.linear(torch.ones(1, 64), CodedWeight(groups.codes, groups.scales[:, :1], None, 4, 32))
    with pytest.raises(ValueError, match="minima"):
        OPS.linear(torch.ones(1, 64), CodedWeight(groups.codes, groups.scales, groups.scales[1:], 4, 32))
