"""Norms, gated activations, rotation of heads and the cache's writes: one program a row. Contracts: see `reference`."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x, weight, y, heads, n, eps, x_row, x_head, weight_row, weight_head, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    values = tl.load(x + row * x_row + head * x_head + columns, mask=inside, other=0).to(tl.float32)
    factors = tl.load(weight + row * weight_row + head * weight_head + columns, mask=inside, other=0).to(tl.float32)
    inverse = 1 / tl.sqrt(tl.sum(values * values, axis=0) / n + eps)
    found = values * inverse * factors
    tl.store(y + (row * heads + head) * n + columns, found.to(y.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return y
    n = x.shape[-1]
    rows = x.reshape(len(x), -1, n) if x.ndim > 1 else x.view(1, 1, n)
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    own = weight.reshape(len(rows), -1, n) if weight.ndim > 1 else weight.view(1, 1, n)
    own = own.contiguous().expand_as(rows)
    strides = (*rows.stride()[:2], *own.stride()[:2])
    rms_norm_kernel[(rows.shape[0] * rows.shape[1],)](
        rows, own, y, rows.shape[1], n, eps, *strides, BLOCK=triton.next_power_of_2(n)
    )
    return y


# ---- gated activations ----------------------------------------------------------------------------------------------


@triton.jit
def tanh(x):
    """Of float32, through an exponential that cannot overflow."""
    power = tl.exp(-2 * tl.abs(x))
    size = (1 - power) / (1 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def gated_kernel(gate_up, y, n, row_stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    gate = tl.load(gate_up + row * row_stride + columns, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + n + columns, mask=inside, other=0).to(tl.float32)
    if GELU:
        activated = 0.5 * gate * (1 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    else:
        activated = gate / (1 + tl.exp(-gate))
    tl.store(y + row * n + columns, (activated * up).to(y.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, gelu=False)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, gelu=True)


def _gated(gate_up: Tensor, *, gelu: bool) -> Tensor:
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, n, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        block = min(1024, triton.next_power_of_2(n))
        gated_kernel[(rows, triton.cdiv(n, block))](gate_up, y, n, gate_up.stride(0), GELU=gelu, BLOCK=block)
    return y


# ---- positions and the cache ----------------------------------------------------------------------------------------


@triton.jit
def rotate(x, heads, head_stride, cos, sin, half, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """One row's heads, in place."""
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads) & (column < half)
    first = x + head * head_stride + column
    a = tl.load(first, mask=inside, other=0).to(tl.float32)
    b = tl.load(first + half, mask=inside, other=0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(x.dtype.element_ty), mask=inside)
    tl.store(first + half, (b * cos + a * sin).to(x.dtype.element_ty), mask=inside)


@triton.jit
def rope_kernel(
    q, k, positions, table, q_heads, k_heads, half, q_row, q_head, k_row, k_head,
    Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_HALF)[None, :]
    angles = table + tl.load(positions + row).to(tl.int64) * 2 * half + column
    cos = tl.load(angles, mask=column < half, other=0)
    sin = tl.load(angles + half, mask=column < half, other=0)
    rotate(q + row * q_row, q_heads, q_head, cos, sin, half, Q_BLOCK, BLOCK_HALF)
    rotate(k + row * k_row, k_heads, k_head, cos, sin, half, K_BLOCK, BLOCK_HALF)


def rope_(q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> None:
    _require_dense_heads(q, k)
    if len(q) == 0:
        return
    half = q.shape[2] // 2
    rope_kernel[(len(q),)](
        q, k, positions, table.contiguous(), q.shape[1], k.shape[1], half, *q.stride()[:2], *k.stride()[:2],
        Q_BLOCK=triton.next_power_of_2(q.shape[1]), K_BLOCK=triton.next_power_of_2(k.shape[1]),
        BLOCK_HALF=triton.next_power_of_2(half),
    )  # fmt: skip


@triton.jit
def kv_append_kernel(
    k,
    v,
    k_cache,
    v_cache,
    slots,
    heads,
    n,
    k_row,
    k_head,
    v_row,
    v_head,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (column < n)
    place = (slot * heads + head) * n + column
    tl.store(k_cache + place, tl.load(k + row * k_row + head * k_head + column, mask=inside), mask=inside)
    tl.store(v_cache + place, tl.load(v + row * v_row + head * v_head + column, mask=inside), mask=inside)


def kv_append_(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _require_dense_heads(k, v)
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("kv_append: the caches must be contiguous")
    if len(k):
        heads, n = k.shape[1:]
        kv_append_kernel[(len(k),)](
            k, v, k_cache, v_cache, slots, heads, n, *k.stride()[:2], *v.stride()[:2],
            BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK=triton.next_power_of_2(n),
        )  # fmt: skip


def _require_dense_heads(*tensors: Tensor) -> None:
    if any(x.stride(2) != 1 for x in tensors):
        raise ValueError("a head's numbers must lie side by side")
