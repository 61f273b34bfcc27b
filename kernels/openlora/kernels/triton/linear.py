"""Products with weights of fewer bits, and with a result wider than its factors. Contracts: see `reference`.

A program has a block of rows and a block of outputs, and walks the inputs 64 at a time in two halves of 32: the halves
of Int4Weight's bytes. Codes become numbers of x's dtype in registers, so that memory is read in the bits that it keeps
and matrix instructions get what they want; sums are float32. Integers of int8 are exact in bfloat16, and their scale
comes last. Groups are multiples of 16 inputs: 16 of them share a scale, whatever the group.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from openlora.kernels import reference
from openlora.kernels.types import CodedWeight, Int4Weight, Int8Weight

BLOCK_OUT = 32
MOST_ROWS = 64  # of x in one program
HALF = tl.constexpr(32)
SHARED = tl.constexpr(16)  # inputs that are sure to share a scale


def block_rows(rows: int, element_bytes: int) -> int:
    """The rows of a matrix instruction at least, so that a decoding batch reads every weight once; of float32, which
    is multiplied in registers alone, half as many have room."""
    most = MOST_ROWS if element_bytes == 2 else MOST_ROWS // 2
    return min(most, max(16, int(triton.next_power_of_2(rows))))


@triton.jit
def of_groups(numbers, n, first, outputs, inputs, groups, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """numbers[n, i // GROUP] for HALF inputs i from `first` on, [HALF, BLOCK_OUT] float32."""
    i = first + SHARED * tl.arange(0, HALF // SHARED)
    known = (n < outputs)[None, :] & (i < inputs)[:, None]
    few = tl.load(numbers + n[None, :].to(tl.int64) * groups + (i // GROUP)[:, None], mask=known, other=0)
    wide = tl.broadcast_to(few.to(tl.float32)[:, None, :], (HALF // SHARED, SHARED, BLOCK_OUT))
    return tl.reshape(wide, (HALF, BLOCK_OUT))


@triton.jit
def linear_kernel(
    x, codes, scales, minima, bias, y, rows, outputs, inputs, x_row, code_row, groups,
    BITS: tl.constexpr, GROUP: tl.constexpr, MINIMA: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """y[t, n] = Σ_i x[t, i] · w[n, i] + bias[n]. BITS 16: `codes` are numbers. GROUP 0: one scale a row, or none."""
    t = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    k = tl.arange(0, HALF)
    mine = codes + n[None, :].to(tl.int64) * code_row + k[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for i0 in range(0, inputs, 2 * HALF):
        if BITS == 4:  # a row has its last bytes in full
            both = tl.load(mine + i0 // 2, mask=(n < outputs)[None, :], other=0)
        for half in tl.static_range(2):
            first = i0 + half * HALF
            i = first + k
            known = i < inputs
            if BITS == 4:
                w = ((both >> 4 * half) & 15).to(tl.int32)
                if not MINIMA:
                    w = (w ^ 8) - 8
            else:
                w = tl.load(mine + first, mask=(n < outputs)[None, :] & known[:, None], other=0)
            if BITS < 16:
                w = w.to(tl.float32)
            if GROUP > 0:
                w *= of_groups(scales, n, first, outputs, inputs, groups, GROUP, BLOCK_OUT)
                if MINIMA:
                    w += of_groups(minima, n, first, outputs, inputs, groups, GROUP, BLOCK_OUT)
            place = t[:, None].to(tl.int64) * x_row + i[None, :]
            numbers = tl.load(x + place, mask=(t < rows)[:, None] & known[None, :], other=0)
            total = tl.dot(numbers, w.to(numbers.dtype), total, input_precision="ieee")
    if BITS == 8 and GROUP == 0:
        total *= tl.load(scales + n, mask=n < outputs, other=0)[None, :]
    if BIASED:
        total += tl.load(bias + n, mask=n < outputs, other=0).to(tl.float32)[None, :]
    inside = (t < rows)[:, None] & (n < outputs)[None, :]
    tl.store(y + t[:, None].to(tl.int64) * outputs + n[None, :], total.to(y.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A weight as the kernel reads it."""

    codes: Tensor
    bits: int
    inputs: int
    scales: Tensor | None = None
    minima: Tensor | None = None
    group: int = 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """torch's own product, but where the result is wider than the factors."""
    if out_dtype == x.dtype:
        return reference.linear(x, weight, bias, out_dtype)
    return _product(x, _Numbers(weight, 16, weight.shape[1]), bias, out_dtype)


def linear_int8(x: Tensor, weight: Int8Weight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    return _product(x, _Numbers(weight.codes, 8, weight.codes.shape[1], weight.scale), bias, out_dtype)


def linear_coded(x: Tensor, weight: CodedWeight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    numbers = _Numbers(weight.codes, 8, weight.codes.shape[1], weight.scales, weight.minima, weight.group)
    return _product(x, numbers, bias, out_dtype)


def linear_int4(x: Tensor, weight: Int4Weight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    numbers = _Numbers(weight.codes, 4, weight.inputs, weight.scales, weight.minima, weight.group)
    return _product(x, numbers, bias, out_dtype)


def _product(x: Tensor, weight: _Numbers, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    codes, scales, minima = (None if one is None else one.contiguous() for one in _tensors(weight))
    assert codes is not None, "a weight has codes"
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, outputs = len(x), len(codes)
    y = torch.empty(rows, outputs, dtype=out_dtype, device=x.device)
    if y.numel():
        block = block_rows(rows, x.element_size())
        linear_kernel[(triton.cdiv(rows, block), triton.cdiv(outputs, BLOCK_OUT))](
            x, codes, x if scales is None else scales, x if minima is None else minima, x if bias is None else bias, y,
            rows, outputs, weight.inputs, x.stride(0), codes.stride(0), 0 if scales is None else scales.stride(0),
            BITS=weight.bits, GROUP=weight.group, MINIMA=minima is not None, BIASED=bias is not None,
            BLOCK_ROWS=block, BLOCK_OUT=BLOCK_OUT,
        )  # fmt: skip
    return y


def _tensors(weight: _Numbers) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return weight.codes, weight.scales, weight.minima
