"""The effects of many adapters on one batch, each at its own rank. Contracts: see `reference`.

Entries are sorted by slot and cut into tiles of up to 16, the rows of one matrix instruction. Two kernels run over the
tiles: `shrink` makes A·x, `expand` makes B·(A·x). While decoding a tile is an adapter, so that B is read once for every
block of outputs; in a prompt a tile is sixteen of an adapter's rows. Both are the same kernels with the same blocks, so
a row's result depends on nothing but the row: neither on who else is in the batch nor on how many rows come at once.

An entry's effect is whole after `expand` (its weight and scale multiply A·x). Where every row has one entry at most
`expand` adds it to y; else `combine` first sums each row's effects in the order of its list. The bits are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from openlora.kernels.triton.lora_table import ALIGNMENT, FIELDS, RANK, SCALE, STRETCH, A, B, FactorTable, alone
from openlora.kernels.types import Changes, Difference, LoraEntries

TILE = 16  # entries a tile
SPAN = 1024  # inputs that one program of `shrink` sums; the spans' sums are added in order
BLOCK_RANK, BLOCK_IN, BLOCK_OUT = 16, 64, 64


@dataclass(frozen=True, slots=True)
class Group:
    """The entries of one slot, start:stop of the sorted ones, and their tiles."""

    slot: int
    start: int
    stop: int
    tiles: slice


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """All entries, sorted by slot; a plan serves every layer of one step.

    A captured graph's plan serves many: its tensors are as long as they may have to be and hold each step's entries in
    turn, all of low rank; tiles that a step does not need have no entries.
    """

    groups: Sequence[Group]  # none in a captured graph's
    slots: frozenset[int] | None  # None: a captured graph's, any
    tiles: Tensor  # [tiles, 3] int32: slot, first entry, entries (none in a tile that is not used)
    entry: Tensor  # [E] int32; where the sorted entry stood
    row: Tensor  # [E] int32
    weight: Tensor  # [E] float32
    indptr: Tensor  # [T + 1] int32, as it came
    alone: bool  # every row has one entry at most


def sorted_by_slot(slots: Sequence[int]) -> tuple[list[int], list[Group], list[tuple[int, int, int]]]:
    """The entries' order, then their groups and tiles."""
    order = sorted(range(len(slots)), key=slots.__getitem__)
    ordered = [slots[entry] for entry in order]
    edges = [i for i in range(len(ordered) + 1) if i in (0, len(ordered)) or ordered[i] != ordered[i - 1]]
    groups, tiles = [], list[tuple[int, int, int]]()
    for start, stop in pairwise(edges):
        before = len(tiles)
        tiles += [(ordered[start], first, min(TILE, stop - first)) for first in range(start, stop, TILE)]
        groups.append(Group(ordered[start], start, stop, slice(before, len(tiles))))
    return order, groups, tiles


def plan_lora(entries: LoraEntries) -> LoraPlan:
    device = entries.slot.device
    indptr = entries.indptr.int().contiguous()
    counts = indptr.diff()
    rows = torch.arange(len(counts), device=device).repeat_interleave(counts)
    chosen, groups, tiles = sorted_by_slot(entries.slot.tolist())
    order = torch.tensor(chosen, dtype=torch.int64, device=device)
    return LoraPlan(
        groups=groups,
        slots=frozenset(entry.slot for entry in groups),
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 3),
        entry=order.int(),
        row=rows[order].int(),
        weight=entries.weight[order].float(),
        indptr=indptr,
        alone=not chosen or int(counts.max()) <= 1,
    )


# ---- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def shrink_kernel(
    x, sums, table, tiles, rows, in_features, x_row, sums_row, span_stride, first_entry,
    FACTOR: tl.constexpr, SPAN: tl.constexpr,
    TILE: tl.constexpr, BLOCK_RANK: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """sums[span, entry − first_entry, j] = Σ_i a[j, i] · x[row of the entry, i] over the inputs i of the span."""
    tile = tiles + 3 * tl.program_id(0)
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    change = table + FIELDS * tl.load(tile).to(tl.int64)
    rank = tl.load(change + RANK).to(tl.int32)
    if (tl.program_id(1) * BLOCK_RANK >= rank) | (count == 0):
        return
    a = tl.multiple_of(tl.load(change + A).to(tl.pointer_type(FACTOR)), ALIGNMENT)
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
    place = (start + m - first_entry).to(tl.int64)[:, None] * sums_row + j[None, :]
    inside = (m < count)[:, None] & (j < rank)[None, :]
    tl.store(sums + tl.program_id(2) * span_stride + place, total, mask=inside)


@triton.jit
def lookup_kernel(
    tokens, sums, table, tiles, rows, vocabulary, sums_row,
    FACTOR: tl.constexpr, TILE: tl.constexpr, BLOCK_RANK: tl.constexpr,
):  # fmt: skip
    """sums[0, entry, j] = a[j, token of the entry's row]: what `shrink` makes of a row that is one-hot."""
    tile = tiles + 3 * tl.program_id(0)
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    change = table + FIELDS * tl.load(tile).to(tl.int64)
    rank = tl.load(change + RANK).to(tl.int32)
    a = tl.load(change + A).to(tl.pointer_type(FACTOR))
    m = tl.arange(0, TILE)
    j = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    inside = (m < count)[:, None] & (j < rank)[None, :]
    row = tl.load(rows + start + m, mask=m < count, other=0)
    token = tl.load(tokens + row, mask=m < count, other=0).to(tl.int64)
    column = tl.load(a + j[None, :].to(tl.int64) * vocabulary + token[:, None], mask=inside, other=0)
    tl.store(sums + (start + m).to(tl.int64)[:, None] * sums_row + j[None, :], column.to(tl.float32), mask=inside)


@triton.jit
def expand_kernel(
    y, bias, effects, sums, table, tiles, rows, entries, weights, out_features, spans, y_row, sums_row, span_stride,
    FACTOR: tl.constexpr, BIASED: tl.constexpr, ALONE: tl.constexpr, RANKS_OF_8: tl.constexpr,
    TILE: tl.constexpr, BLOCK_RANK: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """effects[entry] = weight · (scale · B · Σ_span sums[span, entry] + stretch · (y[row] − bias)); where every entry
    is alone in its row it is added to y[row] at once."""
    tile = tiles + 3 * tl.program_id(0)
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    change = table + FIELDS * tl.load(tile).to(tl.int64)
    rank = tl.load(change + RANK).to(tl.int32)
    if (rank == 0) | (count == 0):  # the slot leaves this layer alone, or its effect comes from elsewhere
        return
    if RANKS_OF_8:
        rank = tl.multiple_of(rank, 8)  # rows of B are then whole vectors
    b = tl.multiple_of(tl.load(change + B).to(tl.pointer_type(FACTOR)), ALIGNMENT)
    m = tl.arange(0, TILE)
    n = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = (m < count)[:, None] & (n < out_features)[None, :]
    weight = tl.load(weights + start + m, mask=m < count, other=0)
    factor = weight * tl.load(change + SCALE).to(tl.int32).to(tl.float32, bitcast=True)
    shrunk = sums + (start + m).to(tl.int64)[:, None] * sums_row
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
    stretch = tl.load(change + STRETCH)
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


def lora_(y: Tensor, x: Tensor, plan: LoraPlan, table: Changes, bias: Tensor | None) -> None:
    changes = FactorTable.of(table, y.device)
    x = x if x.stride(1) == 1 else x.contiguous()
    effects = _effects(y, plan, changes)
    if changes.low_rank(plan.slots):
        sums = _sums(plan, changes, triton.cdiv(x.shape[1], SPAN), y.device)
        _shrink(sums, x, changes.rows, plan.tiles, 0, changes.dtype, plan)
        _expand(y, bias, effects, sums, changes, plan)
    for group, weight in _whole(plan, changes):
        _store(effects, _product(x, weight.contiguous(), group, plan), group, plan)
    _combine(y, effects, plan)


def lora_embedding_(y: Tensor, tokens: Tensor, plan: LoraPlan, table: Changes) -> None:
    changes = FactorTable.of(table, y.device)
    effects = _effects(y, plan, changes)
    if changes.low_rank(plan.slots):
        sums = _sums(plan, changes, 1, y.device)
        _lookup(sums, tokens, changes, plan)
        _expand(y, None, effects, sums, changes, plan)
    for group, weight in _whole(plan, changes):
        chosen = tokens[plan.row[group.start : group.stop].long()]
        _store(effects, weight.index_select(0, chosen).float(), group, plan)
    _combine(y, effects, plan)


def lora_vector_(y: Tensor, plan: LoraPlan, table: Changes) -> None:
    changes = FactorTable.of(table, y.device)
    assert not changes.low_rank(plan.slots), "a vector has no factors"
    effects = _effects(y, plan, changes)
    for group, weight in _whole(plan, changes):
        _store(effects, weight.float().expand(group.stop - group.start, -1), group, plan)
    _combine(y, effects, plan)


def _effects(y: Tensor, plan: LoraPlan, changes: FactorTable) -> Tensor | None:
    """[E, out] float32, or None where `expand` may add to y at once, or nothing is to be added."""
    if y.stride(1) != 1:
        raise ValueError("lora: a row of y must lie side by side")
    if changes.whole(plan.slots) or (changes.low_rank(plan.slots) and not plan.alone):
        return torch.zeros(len(plan.row), y.shape[1], device=y.device)
    return None


def _whole(plan: LoraPlan, changes: FactorTable) -> Iterator[tuple[Group, Tensor]]:
    if changes.whole(plan.slots):
        for group in plan.groups:
            if isinstance(change := changes[group.slot], Difference):
                yield group, change.weight


def _sums(plan: LoraPlan, changes: FactorTable, spans: int, device: torch.device) -> Tensor:
    """[spans, E, most rank]; a row is filled up to its own rank."""
    return torch.empty(spans, len(plan.row), changes.most_rank, device=device)


def _shrink(
    sums: Tensor,
    x: Tensor,
    table: Tensor,
    tiles: Tensor,
    first_entry: int,
    dtype: torch.dtype | None,
    plan: LoraPlan,
) -> None:
    assert dtype is not None, "there are factors"
    shrink_kernel[(len(tiles), triton.cdiv(sums.shape[2], BLOCK_RANK), len(sums))](
        x, sums, table, tiles, plan.row, x.shape[1], x.stride(0), sums.stride(1), sums.stride(0), first_entry,
        FACTOR=_ELEMENT[dtype], SPAN=SPAN, TILE=TILE, BLOCK_RANK=BLOCK_RANK, BLOCK_IN=BLOCK_IN,
    )  # fmt: skip


def _lookup(sums: Tensor, tokens: Tensor, changes: FactorTable, plan: LoraPlan) -> None:
    assert changes.dtype is not None, "there are factors"
    lookup_kernel[(len(plan.tiles), triton.cdiv(sums.shape[2], BLOCK_RANK))](
        tokens, sums, changes.rows, plan.tiles, plan.row, changes.inputs, sums.stride(1),
        FACTOR=_ELEMENT[changes.dtype], TILE=TILE, BLOCK_RANK=BLOCK_RANK,
    )  # fmt: skip


def _expand(
    y: Tensor, bias: Tensor | None, effects: Tensor | None, sums: Tensor, changes: FactorTable, plan: LoraPlan
) -> None:
    assert changes.dtype is not None, "there are factors"
    expand_kernel[(len(plan.tiles), triton.cdiv(y.shape[1], BLOCK_OUT))](
        y, y if bias is None else bias, y if effects is None else effects, sums, changes.rows,
        plan.tiles, plan.row, plan.entry, plan.weight, y.shape[1], len(sums), y.stride(0), *sums.stride()[1::-1],
        FACTOR=_ELEMENT[changes.dtype], BIASED=bias is not None, ALONE=effects is None, RANKS_OF_8=changes.ranks_of_8,
        TILE=TILE, BLOCK_RANK=BLOCK_RANK, BLOCK_OUT=BLOCK_OUT,
    )  # fmt: skip


def _product(x: Tensor, weight: Tensor, group: Group, plan: LoraPlan) -> Tensor:
    """A whole ΔW is an A of as many rows as there are outputs, with no B after it."""
    sums = torch.empty(triton.cdiv(x.shape[1], SPAN), group.stop - group.start, len(weight), device=x.device)
    tiles = plan.tiles[group.tiles]
    _shrink(sums, x, alone(group.slot, weight), tiles, group.start, weight.dtype, plan)
    total = sums[0]
    for part in sums[1:]:
        total += part
    return total


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
