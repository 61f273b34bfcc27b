"""Products with weights of every kind against their equation in float64."""

import pytest
import torch
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.kernels.quantised import dequantise, pack_int4, quantise_int4, quantise_int8, rows_of, unpack_int4
from openlora.kernels.types import CodedWeight, Int4Weight, Weight

OUT = 40
KINDS = ("full", "int8", "int4", "4 bits", "packed", "groups of 16 with minima", "packed with minima", "groups of 48")
INPUTS = {"groups of 48": 144}


def weight_of(kind: str, inputs: int, dtype: torch.dtype, rng: torch.Generator) -> Weight:
    dense = torch.randn(OUT, inputs, generator=rng) / inputs**0.5
    match kind:
        case "full":
            return dense.to(dtype)
        case "int8":
            return quantise_int8(dense)
        case "int4":
            return quantise_int4(dense)
        case "4 bits":
            return coded(inputs, 32, 4, rng, minima=False)
        case "packed":
            return pack_int4(coded(inputs, 32, 4, rng, minima=False))
        case "groups of 16 with minima":
            return coded(inputs, 16, 8, rng, minima=True)
        case "packed with minima":
            return pack_int4(coded(inputs, 32, 4, rng, minima=True))
    return coded(inputs, 48, 8, rng, minima=False)


def coded(inputs: int, group: int, bits: int, rng: torch.Generator, *, minima: bool) -> CodedWeight:
    low, high = {4: (0, 16) if minima else (-8, 8), 8: (-128, 128)}[bits]
    groups = -(-inputs // group)
    scales, offsets = torch.randn(2, OUT, groups, generator=rng).half() / 2**bits
    codes = torch.randint(low, high, (OUT, inputs), generator=rng, dtype=torch.int8)
    return CodedWeight(codes, scales, offsets if minima else None, bits, group)


def numbers_of(weight: Weight, dtype: torch.dtype) -> Tensor:
    """What is computed with: groups' numbers are rounded to x's dtype, int8's are not."""
    wide = dequantise(weight)
    return (wide.to(dtype) if isinstance(weight, Tensor | CodedWeight | Int4Weight) else wide).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 33, 133])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True], ids=["same", "float32"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_equals_the_product_of_the_numbers(
    ops: Ops, kind: str, rows: int, dtype: torch.dtype, wide: bool, biased: bool
) -> None:
    rng = torch.Generator().manual_seed(rows)
    inputs = INPUTS.get(kind, 72)  # neither a block of inputs nor a group is full at the end
    weight, x = weight_of(kind, inputs, dtype, rng), torch.randn(rows, inputs, generator=rng).to(dtype)
    bias = torch.randn(OUT, generator=rng).to(dtype) if biased else None
    found = ops.linear(x, weight, bias, torch.float32 if wide else None)
    assert found.dtype == (torch.float32 if wide else dtype)
    expected = x.double() @ numbers_of(weight, dtype).T + (0 if bias is None else bias.double())
    fine = found.dtype == torch.float32
    tolerance = (5e-4 if kind == "int8" else 1e-4) if fine else 2**-6  # int8's reference rounds x to 14 bits
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_row_that_is_not_finite_is_so_alone(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    for kind in ("int8", "int4", "int4 packed"):
        weight, x = weight_of(kind, 72, torch.float32, rng), torch.ones(4, 72)
        x[1, 5], x[2, 6], x[3] = torch.nan, torch.inf, 0
        found = ops.linear(x, weight)
        assert not found[1:3].isfinite().any()
        torch.testing.assert_close(found[0], ops.linear(x[:1], weight)[0])
        assert not found[3].any()


def test_inputs_may_be_slices_and_weights_a_stacks_rows(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 144, generator=rng)[:, 72:]
    for kind in KINDS[:-1]:
        weight = weight_of(kind, 72, torch.float32, rng)
        part = rows_of(weight, slice(8, 24))
        torch.testing.assert_close(ops.linear(x, part), ops.linear(x, weight)[:, 8:24])


@pytest.mark.parametrize("inputs", [32, 64, 72, 130])
@pytest.mark.parametrize("minima", [False, True])
def test_packing_keeps_every_code(inputs: int, minima: bool) -> None:
    weight = coded(inputs, 32, 4, torch.Generator().manual_seed(0), minima=minima)
    packed = pack_int4(weight)
    assert packed.codes.nbytes == OUT * 32 * -(-inputs // 64)
    assert torch.equal(unpack_int4(packed).codes, weight.codes)
    assert torch.equal(dequantise(packed), dequantise(weight))
    with pytest.raises(ValueError, match="8 bits"):
        pack_int4(coded(64, 32, 8, torch.Generator(), minima=False))
