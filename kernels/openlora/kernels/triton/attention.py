"""Attention over paged keys and values, in one pass with a running softmax (Milakov and Gimelshein, 2018; Dao et al.,
2022). Contracts: see `reference`.

The query heads that share a key-value head are computed together: a program has 16 of a decoding sequence's rows of
queries, or 64 of a prompt's. Which of the two depends on the sequence alone, and positions are taken in blocks counted
from the sequence's start, so a row's result does not depend on the rest of the batch.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from openlora.kernels.triton.elementwise import tanh
from openlora.kernels.types import AttentionBatch

DECODE_QUERIES, PROMPT_QUERIES = 16, 64


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the kernel is cut, so that a block fits the registers and the shared memory of the smallest device."""

    queries: int
    positions: int  # taken at a time
    head_block: int
    warps: int


def geometry(head_size: int, element_bytes: int, *, decode: bool) -> Geometry:
    head_block = max(16, triton.next_power_of_2(head_size))
    positions = min(64, 64 * 256 // (head_block * element_bytes))
    if decode or element_bytes > 2:  # float32 has no matrix instructions to fill
        return Geometry(DECODE_QUERIES, positions, head_block, warps=4)
    return Geometry(PROMPT_QUERIES, positions, head_block, warps=8 if head_block >= 128 else 4)


@dataclass(frozen=True, slots=True)
class Members:
    """Sequences computed with one launch."""

    sequences: Tensor  # [S] int32
    rows: int  # of the longest


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Decoding sequences (one row each) and the others; a plan serves every layer of one step that has this window."""

    row_starts: Tensor
    context_lens: Tensor
    page_table: Tensor
    decodes: Members
    prompts: Members
    page_tokens: int
    window: int | None


def plan_attention(batch: AttentionBatch, page_tokens: int, dtype: torch.dtype, window: int | None) -> AttentionPlan:
    rows = batch.row_starts.diff().tolist()

    def members(chosen: list[int]) -> Members:
        sequences = torch.tensor(chosen, dtype=torch.int32, device=batch.row_starts.device)
        return Members(sequences, max((rows[s] for s in chosen), default=0))

    return AttentionPlan(
        row_starts=batch.row_starts.int(),
        context_lens=batch.context_lens.int(),
        page_table=batch.page_table.int().contiguous(),
        decodes=members([s for s, count in enumerate(rows) if count == 1]),
        prompts=members([s for s, count in enumerate(rows) if count > 1]),
        page_tokens=page_tokens,
        window=window,
    )


@triton.jit
def attention_kernel(
    q, k_cache, v_cache, out, sequences, row_starts, context_lens, page_table,
    scale, cap, window, head_size, page_columns, q_row, q_head, kv_heads,
    PAGE: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, POSITIONS: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """HEADS query heads a key-value head; QUERIES // HEADS rows a program."""
    ROWS: tl.constexpr = QUERIES // HEADS
    s = tl.load(sequences + tl.program_id(0)).to(tl.int64)
    start = tl.load(row_starts + s)
    rows = tl.load(row_starts + s + 1) - start
    context = tl.load(context_lens + s)
    first = tl.program_id(1) * ROWS
    if first >= rows:
        return
    query = tl.arange(0, QUERIES)
    row = first + query // HEADS
    computed = (query < ROWS * HEADS) & (row < rows)
    column = tl.arange(0, HEAD_BLOCK)
    inside = column < head_size
    kv_head = tl.program_id(2)
    head = kv_head * HEADS + query % HEADS
    t = (start + row).to(tl.int64)
    chosen = computed[:, None] & inside[None, :]
    queries = tl.load(q + t[:, None] * q_row + head[:, None] * q_head + column[None, :], mask=chosen, other=0)
    own = context - rows + row  # a row's position
    begin = 0
    if WINDOWED:
        begin = tl.maximum(context - rows + first - window + 1, 0) // POSITIONS * POSITIONS
    end = tl.minimum(context, context - rows + first + ROWS)

    most = tl.full((QUERIES,), -float("inf"), tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, HEAD_BLOCK), tl.float32)
    for j0 in range(begin, end, POSITIONS):
        j = j0 + tl.arange(0, POSITIONS)
        known = j < end
        page = tl.load(page_table + s * page_columns + j // PAGE, mask=known, other=0).to(tl.int64)
        place = ((page * PAGE + j % PAGE) * kv_heads + kv_head) * head_size
        read = known[:, None] & inside[None, :]
        keys = tl.load(k_cache + place[:, None] + column[None, :], mask=read, other=0)
        values = tl.load(v_cache + place[:, None] + column[None, :], mask=read, other=0)
        scores = scale * tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if CAPPED:
            scores = cap * tanh(scores / cap)
        seen = known[None, :] & (j[None, :] <= own[:, None])
        if WINDOWED:
            seen &= j[None, :] > own[:, None] - window
        scores = tl.where(seen, scores, -float("inf"))
        more = tl.maximum(most, tl.max(scores, axis=1))
        shift = tl.where(more == -float("inf"), 0.0, more)  # a row that has seen nothing yet
        kept = tl.exp(most - shift)
        weights = tl.exp(scores - shift[:, None])
        mass = mass * kept + tl.sum(weights, axis=1)
        total = tl.dot(weights.to(values.dtype), values, total * kept[:, None], input_precision="ieee")
        most = more
    found = (total / mass[:, None]).to(out.dtype.element_ty)
    tl.store(out + (t[:, None] * kv_heads * HEADS + head[:, None]) * head_size + column[None, :], found, mask=chosen)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float, soft_cap: float | None
) -> Tensor:
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()) or q.dtype != k_cache.dtype:
        raise ValueError("paged_attention: the caches must be contiguous, and of the queries' dtype")
    q = q if q.stride(2) == 1 else q.contiguous()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    kv_heads, head_size = k_cache.shape[2:]
    heads = q.shape[1] // kv_heads
    if heads > DECODE_QUERIES:
        raise ValueError(f"paged_attention: {heads} query heads share a key-value head; {DECODE_QUERIES} may")
    for members in (plan.decodes, plan.prompts):
        if members.rows == 0:
            continue
        cut = geometry(head_size, q.element_size(), decode=members is plan.decodes)
        attention_kernel[(len(members.sequences), triton.cdiv(members.rows, cut.queries // heads), kv_heads)](
            q, k_cache, v_cache, out, members.sequences, plan.row_starts, plan.context_lens, plan.page_table,
            scale, soft_cap or 1.0, plan.window or 0, head_size, plan.page_table.shape[1], *q.stride()[:2], kv_heads,
            PAGE=plan.page_tokens, CAPPED=soft_cap is not None, WINDOWED=plan.window is not None,
            HEADS=heads, QUERIES=cut.queries, POSITIONS=cut.positions, HEAD_BLOCK=cut.head_block, num_warps=cut.warps,
        )  # fmt: skip
    return out
