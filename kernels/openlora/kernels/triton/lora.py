"""The effects of many adapters on one batch, each at its own rank. Contracts: see `reference`.

Entries are sorted by slot and cut into tiles of up to 16, the rows of one matrix instruction. Two kernels run over the
tiles: `shrink` makes A·x, `expand` makes B·(A·x). While decoding a tile is an adapter, so that B is read once for every
block of outputs; in a prompt a tile is sixteen of an adapter's rows. Both are the same kernels with the same blocks, so
a row's result depends on nothing but the row: neither on who else is in the batch nor on how many rows come at once.

An entry's effect is whole after `expand` (its weight and scale multiply A·x). Where every row has one entry at most
`expand` adds it to y; else `combine` first sums each row's effects in the order of its list. The bits are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from openlora.kernels.types import Change, Difference, LoraEntries, LoraFactors

TILE = 16  # entries a tile
SPAN = 1024  # inputs that one program of `shrink` sums; the spans' sums are added in order
BLOCK_RANK, BLOCK_IN, BLOCK_OUT = 16, 64, 64
ALIGNMENT = tl.constexpr(16)  # bytes, of an adapter's factors: what one instruction reads


# What a kernel reads of a group, the entries of one slot: six int64.
A, B, RANK, SCALE, STRETCH, OFFSET = (tl.constexpr(i) for i in range(6))
FIELDS = tl.constexpr(6)


@dataclass(frozen=True, slots=True)
class Group:
    """The entries of one slot, start:stop of the sorted ones."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """All entries, sorted by slot; a plan serves every layer of one step."""

    groups: list[Group]
    tiles: Tensor  # [tiles, 3] int32: group, first entry, entries
    entry: Tensor  # [E] int32; where the sorted entry stood
    row: Tensor  # [E] int32
    weight: Tensor  # [E] float32
    indptr: Tensor  # [T + 1] int32, as it came
    alone: bool  # every row has one entry at most


def plan_lora(entries: LoraEntries) -> LoraPlan:
    device = entries.slot.device
    indptr, slots = entries.indptr.int().contiguous(), entries.slot.cpu()
    counts = indptr.diff()
    rows = torch.arange(len(counts), device=device).repeat_interleave(counts)
    order = slots.sort(stable=True).indices
    ordered = slots[order].tolist()
    edges = [i for i in range(len(ordered) + 1) if i in (0, len(ordered)) or ordered[i] != ordered[i - 1]]
    groups = [Group(ordered[a], a, b) for a, b in pairwise(edges)]
    tiles = [
        (index, first, min(TILE, group.stop - first))
        for index, group in enumerate(groups)
        for first in range(group.start, group.stop, TILE)
    ]
    order = order.to(device)
    return LoraPlan(
        groups=groups,
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 3),
        entry=order.int(),
        row=rows[order].int(),
        weight=entries.weight[order].float(),
        indptr=indptr,
        alone=len(slots) == 0 or int(counts.max()) <= 1,
    )


# ---- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def shrink_kernel(
    x, sums, groups, tiles, rows, in_features, x_row, span_stride,
    FACTOR: tl.constexpr, SPAN: tl.constexpr,
    TILE: tl.constexpr, BLOCK_RANK: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """sums[span, entry, j] = Σ_i a[j, i] · x[row of the entry, i] over the inputs i of the span."""
    tile = tiles + 3 * tl.program_id(0)
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    group = groups + FIELDS * tl.load(tile).to(tl.int64)
    rank = tl.load(group + RANK).to(tl.int32)
    if tl.program_id(1) * BLOCK_RANK >= rank:
        return
    a = tl.multiple_of(tl.load(group + A).to(tl.pointer_type(FACTOR)), ALIGNMENT)
    m = tl.arange(0, TILE)
    j = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    row = tl.load(rows + start + m, mask=m < count, other=0).to(tl.int64)
    total = tl.zeros((TILE, BLOCK_RANK), tl.float32)
    first = tl.program_id(2) * SPAN
    for i0 in range(first, tl.minimum(first + SPAN, in_features), BLOCK_IN):
        i = i0 + tl.arange(0, BLOCK_IN)
        inputs = tl.load(
            x + row[:, None] * x_row + i[None, :], mask=(m < count)[:, None] & (i < in_features)[None, :], other=0
        )
        factor = tl.load(
            a + j[None, :].to(tl.int64) * in_features + i[:, None],
            mask=(j < rank)[None, :] & (i < in_features)[:, None],
            other=0,
        )
        if x.dtype.element_ty == FACTOR and tl.bfloat16 == FACTOR:
            total = tl.dot(inputs, factor, total)
        else:
            total = tl.dot(inputs.to(tl.float32), factor.to(tl.float32), total, input_precision="ieee")
    place = tl.load(group + OFFSET) + (start + m).to(tl.int64)[:, None] * rank + j[None, :]
    inside = (m < count)[:, None] & (j < rank)[None, :]
    tl.store(sums + tl.program_id(2) * span_stride + place, total, mask=inside)


@triton.jit
def expand_kernel(
    y, bias, effects, sums, groups, tiles, rows, entries, weights, out_features, spans, y_row, span_stride,
    FACTOR: tl.constexpr, BIASED: tl.constexpr, ALONE: tl.constexpr, RANKS_OF_8: tl.constexpr,
    TILE: tl.constexpr, BLOCK_RANK: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """effects[entry] = weight · (scale · B · Σ_span sums[span, entry] + stretch · (y[row] − bias)); where every entry
    is alone in its row it is added to y[row] at once."""
    tile = tiles + 3 * tl.program_id(0)
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    group = groups + FIELDS * tl.load(tile).to(tl.int64)
    rank = tl.load(group + RANK).to(tl.int32)
    if rank == 0:  # the slot leaves this layer alone, or its effect comes from elsewhere
        return
    if RANKS_OF_8:
        rank = tl.multiple_of(rank, 8)  # rows of B are then whole vectors
    b = tl.multiple_of(tl.load(group + B).to(tl.pointer_type(FACTOR)), ALIGNMENT)
    m = tl.arange(0, TILE)
    n = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = (m < count)[:, None] & (n < out_features)[None, :]
    weight = tl.load(weights + start + m, mask=m < count, other=0)
    factor = weight * tl.load(group + SCALE).to(tl.int32).to(tl.float32, bitcast=True)
    shrunk = sums + tl.load(group + OFFSET) + (start + m).to(tl.int64)[:, None] * rank
    effect = tl.zeros((TILE, BLOCK_OUT), tl.float32)
    for j0 in range(0, rank, BLOCK_RANK):
        j = j0 + tl.arange(0, BLOCK_RANK)
        known = (m < count)[:, None] & (j < rank)[None, :]
        s = tl.zeros((TILE, BLOCK_RANK), tl.float32)
        for span in range(spans):
            s += tl.load(shrunk + span * span_stride + j[None, :], mask=known, other=0)
        s *= factor[:, None]
        outward = tl.load(
            b + n[None, :].to(tl.int64) * rank + j[:, None],
            mask=(n < out_features)[None, :] & (j < rank)[:, None],
            other=0,
        )
        if (
            tl.bfloat16 == FACTOR
        ):  # two halves of s, 16 bits in all, so that matrix instructions lose nothing that counts
            high = s.to(tl.bfloat16)
            effect = tl.dot(high, outward, effect)
            effect = tl.dot((s - high.to(tl.float32)).to(tl.bfloat16), outward, effect)
        else:
            effect = tl.dot(s, outward.to(tl.float32), effect, input_precision="ieee")
    row = tl.load(rows + start + m, mask=m < count, other=0).to(tl.int64)
    own = y + row[:, None] * y_row + n[None, :]
    stretch = tl.load(group + STRETCH)
    if stretch != 0:
        base = tl.load(own, mask=inside, other=0).to(tl.float32)
        if BIASED:
            base -= tl.load(bias + n, mask=n < out_features, other=0).to(tl.float32)[None, :]
        longer = tl.load(stretch.to(tl.pointer_type(tl.float32)) + n, mask=n < out_features, other=0)
        effect += weight[:, None] * longer[None, :] * base
    if ALONE:
        before = tl.load(own, mask=inside, other=0).to(tl.float32)
        tl.store(own, (before + effect).to(y.dtype.element_ty), mask=inside)
    else:
        entry = tl.load(entries + start + m, mask=m < count, other=0).to(tl.int64)
        tl.store(effects + entry[:, None] * out_features + n[None, :], effect, mask=inside)


@triton.jit
def combine_kernel(y, effects, indptr, out_features, y_row, BLOCK: tl.constexpr):
    """y[t] += Σ_e effects[e] over the entries e of row t, in the order of its list."""
    t = tl.program_id(0).to(tl.int64)
    first, last = tl.load(indptr + t).to(tl.int64), tl.load(indptr + t + 1).to(tl.int64)
    if first == last:
        return
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < out_features
    total = tl.zeros((BLOCK,), tl.float32)
    for e in range(first, last):
        total += tl.load(effects + e * out_features + n, mask=inside, other=0)
    own = y + t * y_row + n
    tl.store(own, (tl.load(own, mask=inside, other=0).to(tl.float32) + total).to(y.dtype.element_ty), mask=inside)


# ---- ops ------------------------------------------------------------------------------------------------------------


def lora_(y: Tensor, x: Tensor, plan: LoraPlan, table: Sequence[Change | None], bias: Tensor | None) -> None:
    changes = [table[group.slot] for group in plan.groups]
    if not any(changes):
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    factors = [change if isinstance(change, LoraFactors) else None for change in changes]
    effects = _effects(y, plan, changes)
    if any(factors):
        spans = triton.cdiv(x.shape[1], SPAN)
        groups, size = _describe(factors, plan)
        sums = torch.empty(spans, size, device=y.device)
        _shrink(sums, x, groups, [change.a for change in factors if change], plan)
        _expand(y, bias, effects, sums, groups, factors, plan)
    for group, change in zip(plan.groups, changes, strict=True):
        if isinstance(change, Difference):
            _product(effects, x, change.weight, group, plan)
    _combine(y, effects, plan)


def lora_embedding_(y: Tensor, tokens: Tensor, plan: LoraPlan, table: Sequence[Change | None]) -> None:
    changes = [table[group.slot] for group in plan.groups]
    if not any(changes):
        return
    factors = [change if isinstance(change, LoraFactors) else None for change in changes]
    effects, chosen = _effects(y, plan, changes), tokens[plan.row.long()]
    if any(factors):
        groups, size = _describe(factors, plan)
        sums, offset = torch.empty(1, size, device=y.device), 0
        for group, factor in zip(plan.groups, factors, strict=True):
            if factor:
                columns = factor.a.index_select(1, chosen[group.start : group.stop]).T.flatten()
                sums[0, offset : offset + len(columns)] = columns
                offset += len(columns)
        _expand(y, None, effects, sums, groups, factors, plan)
    for group, change in zip(plan.groups, changes, strict=True):
        if isinstance(change, Difference):
            rows = change.weight.index_select(0, chosen[group.start : group.stop])
            _store(effects, rows.float(), group, plan)
    _combine(y, effects, plan)


def lora_vector_(y: Tensor, plan: LoraPlan, table: Sequence[Change | None]) -> None:
    changes = [table[group.slot] for group in plan.groups]
    if not any(changes):
        return
    effects = _effects(y, plan, changes)
    for group, change in zip(plan.groups, changes, strict=True):
        if change is not None:
            assert isinstance(change, Difference), "a vector has no factors"
            _store(effects, change.weight.float().expand(group.stop - group.start, -1), group, plan)
    _combine(y, effects, plan)


def _effects(y: Tensor, plan: LoraPlan, changes: Sequence[Change | None]) -> Tensor | None:
    """[E, out] float32, or None where `expand` may add to y at once."""
    if y.stride(1) != 1:
        raise ValueError("lora: a row of y must lie side by side")
    if plan.alone and not any(isinstance(change, Difference) for change in changes):
        return None
    return torch.zeros(len(plan.row), y.shape[1], device=y.device)


def _describe(factors: Sequence[LoraFactors | None], plan: LoraPlan) -> tuple[Tensor, int]:
    """What the kernels read of each group, and how many numbers A·x takes; ValueError for what they cannot read."""
    present = [change for change in factors if change]
    if len({x.dtype for change in present for x in (change.a, change.b)}) > 1:
        raise ValueError("lora: the adapters of one layer must share one dtype")
    if not all(x.is_contiguous() for change in present for x in (change.a, change.b)):
        raise ValueError("lora: an adapter's factors must be contiguous")
    if any(x.data_ptr() % ALIGNMENT.value for change in present for x in (change.a, change.b)):
        raise ValueError(f"lora: an adapter's factors must begin at a multiple of {ALIGNMENT.value} bytes")
    described, size = [], 0
    for group, change in zip(plan.groups, factors, strict=True):
        if change is None:
            described.append([0] * 6)
            continue
        rank = len(change.a)
        scale = int(torch.tensor(change.scale, dtype=torch.float32).view(torch.int32))
        stretch = 0 if change.stretch is None else change.stretch.data_ptr()
        described.append([change.a.data_ptr(), change.b.data_ptr(), rank, scale, stretch, size - group.start * rank])
        size += (group.stop - group.start) * rank
    return torch.tensor(described, dtype=torch.int64).to(plan.row.device, non_blocking=True), size


def _shrink(sums: Tensor, x: Tensor, groups: Tensor, a: Sequence[Tensor], plan: LoraPlan) -> None:
    most = max(len(factor) for factor in a)
    shrink_kernel[(len(plan.tiles), triton.cdiv(most, BLOCK_RANK), len(sums))](
        x, sums, groups, plan.tiles, plan.row, x.shape[1], x.stride(0), sums.stride(0),
        FACTOR=_ELEMENT[a[0].dtype], SPAN=SPAN, TILE=TILE, BLOCK_RANK=BLOCK_RANK, BLOCK_IN=BLOCK_IN,
    )  # fmt: skip


def _expand(
    y: Tensor,
    bias: Tensor | None,
    effects: Tensor | None,
    sums: Tensor,
    groups: Tensor,
    factors: Sequence[LoraFactors | None],
    plan: LoraPlan,
) -> None:
    present = [change for change in factors if change]
    expand_kernel[(len(plan.tiles), triton.cdiv(y.shape[1], BLOCK_OUT))](
        y, y if bias is None else bias, y if effects is None else effects, sums, groups,
        plan.tiles, plan.row, plan.entry, plan.weight, y.shape[1], len(sums), y.stride(0), sums.stride(0),
        FACTOR=_ELEMENT[present[0].b.dtype], BIASED=bias is not None, ALONE=effects is None,
        RANKS_OF_8=all(len(change.a) % 8 == 0 for change in present),
        TILE=TILE, BLOCK_RANK=BLOCK_RANK, BLOCK_OUT=BLOCK_OUT,
    )  # fmt: skip


def _product(effects: Tensor | None, x: Tensor, weight: Tensor, group: Group, plan: LoraPlan) -> None:
    """A whole ΔW is an A of as many rows as there are outputs, with no B after it."""
    alone = LoraFactors(weight.contiguous(), weight[:0], 1.0)
    factors = [alone if other is group else None for other in plan.groups]
    groups, size = _describe(factors, plan)
    sums = torch.empty(triton.cdiv(x.shape[1], SPAN), size, device=x.device)
    _shrink(sums, x, groups, [alone.a], plan)
    total = sums[0]
    for part in sums[1:]:
        total += part
    _store(effects, total.view(-1, len(weight)), group, plan)


def _store(effects: Tensor | None, values: Tensor, group: Group, plan: LoraPlan) -> None:
    assert effects is not None, "a difference is never added to y at once"
    span = slice(group.start, group.stop)
    effects[plan.entry[span].long()] = values * plan.weight[span].unsqueeze(1)


def _combine(y: Tensor, effects: Tensor | None, plan: LoraPlan) -> None:
    if effects is not None:
        block = min(1024, triton.next_power_of_2(y.shape[1]))
        grid = (len(y), triton.cdiv(y.shape[1], block))
        combine_kernel[grid](y, effects, plan.indptr, y.shape[1], y.stride(0), BLOCK=block)


_ELEMENT = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
