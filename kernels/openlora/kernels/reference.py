"""The definition of every op, in plain torch.

Other backends are tested against this file. Sums and products accumulate in float32 and are rounded once, to the dtype
of the result. A row's result depends on that row alone, up to the rounding of torch's own products, whose algorithm may
change with the number of rows. Letters: T rows (tokens) of a batch, S sequences, N rows that are sampled, V vocabulary,
H query heads, K key-value heads, D head size. Index tensors are int32 unless said otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from openlora.kernels.quantised import dequantise
from openlora.kernels.types import (
    AttentionBatch,
    Change,
    Changes,
    CodedWeight,
    Difference,
    Int4Weight,
    Int8Weight,
    LoraEntries,
    LoraFactors,
)

INPUT_MOST = 8_191  # the largest integer that `linear_int8` makes of an activation
_WIDEN_ROWS = 512  # rows of a weight that `linear` widens to float32 at a time: what a core's cache holds


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight over the last dimension n of x and y; weight [n], or a row's own
    in a shape that broadcasts to x's (Zhang and Sennrich, 2019)."""
    return (F.rms_norm(x.float(), (x.shape[-1],), eps=eps) * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """y[t] = (x[t] − mean(x[t])) / sqrt(var(x[t]) + eps) · weight + bias; x and y [T, n], weight and bias [n] (Ba et
    al., 2016)."""
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """y = x · weightᵀ + bias; x [T, in], weight [out, in], bias [out], y [T, out] of `out_dtype`."""
    if out_dtype == x.dtype:
        return F.linear(x, weight, bias)
    wide = x.float()
    blocks = range(0, len(weight), _WIDEN_ROWS)
    parts = [wide @ weight[i : i + _WIDEN_ROWS].float().T for i in blocks]
    y = torch.cat(parts, dim=1)
    return (y if bias is None else y + bias.float()).to(out_dtype)


def linear_int8(x: Tensor, weight: Int8Weight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """y[t] = s · scale · Σ_i q[t, i] · codes[:, i] + bias, where q = round(x[t] / s) with s = max|x[t]| / 8191, so that
    activations have 14 bits. The sum of integers is exact; a row of x that holds an infinity or NaN gives NaN.

    A backend may keep x[t] as it is in q's place and sum in float32. Its y is then nearer to the product of the
    numbers, at most Σ_i |w[:, i]| · s / 2 from this one, and not finite where this one is NaN.

    Eight bits would need a scale for every few inputs, since a few of them are hundreds of times the others.
    """
    wide = x.float()
    scale = wide.abs().amax(dim=1, keepdim=True) / INPUT_MOST
    q = torch.where(scale > 0, wide * (1 / scale), wide).round().double()
    blocks = range(0, len(weight.codes), _WIDEN_ROWS)
    sums = torch.cat([q @ weight.codes[i : i + _WIDEN_ROWS].double().T for i in blocks], dim=1)
    y = sums.float() * (scale * weight.scale)
    return (y if bias is None else y + bias.float()).to(out_dtype)


def linear_coded(x: Tensor, weight: CodedWeight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """As linear, for the numbers that the weight stands for, rounded to x's dtype."""
    return linear(x, dequantise(weight).to(x.dtype), bias, out_dtype)


def linear_int4(x: Tensor, weight: Int4Weight, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """As linear_coded, for the weight whose codes these are."""
    return linear(x, dequantise(weight).to(x.dtype), bias, out_dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """y = silu(gate) · up for gate_up = [gate ‖ up] of shape [T, 2n]; y [T, n] (Shazeer, 2020)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """As silu_mul, with x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))) for silu(x) (Hendrycks and Gimpel, 2016)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)


def gelu(x: Tensor) -> Tensor:
    """y = x · Φ(x), Φ the normal distribution's (Hendrycks and Gimpel, 2016)."""
    return F.gelu(x.float()).to(x.dtype)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """y = cap · tanh(x / cap), which lies between −cap and cap (Gemma 2, 2024)."""
    return (cap * torch.tanh(x.float() / cap)).to(x.dtype)


def rope_(q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> None:
    """Rotate q [T, H, D] and k [T, K, D] in place: (a, b) → (a·cos − b·sin, b·cos + a·sin), where a is the first and b
    the second half of a head, cos and sin [D/2] the halves of row positions[t] of `table` [P, D] float32 (Su et al.,
    2021, in the half-split order of GPT-NeoX)."""
    cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        a, b = x.float().chunk(2, dim=-1)
        x.copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1))


def kv_append_(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """cache[slots[t] // P, slots[t] % P] = row t, in place; k, v [T, K, D], caches [pages, P, K, D], slots [T]."""
    index = slots.long()
    k_cache.flatten(0, 1).index_copy_(0, index, k)
    v_cache.flatten(0, 1).index_copy_(0, index, v)


# ---- attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences computed together: decode rows of similar context (one row each), or a single sequence's chunk."""

    rows: Tensor  # [sequences · rows each]
    slots: Tensor  # [sequences, longest context] cache slots by position; beyond a context its last slot is repeated
    mask: Tensor  # [sequences, 1, rows each, longest context] 0 where the row sees the position, else −inf


AttentionPlan = list[AttentionGroup]


def plan_attention(batch: AttentionBatch, page_tokens: int, dtype: torch.dtype, window: int | None) -> AttentionPlan:
    """Group the batch's sequences; a plan serves every layer of one step that has this window.

    Positions past a sequence's context are read from its own last slot, then masked: what another sequence left in a
    page, be it NaN, never enters a sum.
    """
    starts, lengths = batch.row_starts.tolist(), batch.context_lens.tolist()
    decodes: dict[int, list[int]] = {}
    plan: AttentionPlan = []
    for s, length in enumerate(lengths):
        if starts[s + 1] - starts[s] == 1:
            decodes.setdefault(length.bit_length(), []).append(s)
        else:
            plan.append(_group(batch, [s], starts[s + 1] - starts[s], length, page_tokens, dtype, window))
    for members in decodes.values():
        plan.append(_group(batch, members, 1, max(lengths[s] for s in members), page_tokens, dtype, window))
    return plan


def _group(
    batch: AttentionBatch,
    members: list[int],
    rows_each: int,
    longest: int,
    page_tokens: int,
    dtype: torch.dtype,
    window: int | None,
) -> AttentionGroup:
    chosen = torch.tensor(members, device=batch.row_starts.device)
    context = batch.context_lens[chosen].unsqueeze(1)
    positions = torch.arange(longest, device=chosen.device)
    reads = torch.minimum(positions, context - 1).long()
    pages = batch.page_table[chosen].gather(1, reads // page_tokens)
    offsets = torch.arange(rows_each, device=chosen.device)
    own = (context - rows_each + offsets).unsqueeze(2)
    hidden = positions > own  # [sequences, rows each, longest]
    if window is not None:
        hidden |= positions <= own - window
    return AttentionGroup(
        rows=(batch.row_starts[chosen].unsqueeze(1) + offsets).flatten(),
        slots=pages * page_tokens + reads % page_tokens,
        mask=torch.zeros(hidden.shape, dtype=dtype, device=chosen.device).masked_fill_(hidden, -torch.inf).unsqueeze(1),
    )


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float, soft_cap: float | None
) -> Tensor:
    """o[t, h] = softmax_j(scale · q[t, h]·k[j, h·K/H] for j ≤ position of t) · v[j, h·K/H], j over t's own sequence.

    q and o [T, H, D]; caches [pages, P, K, D] already hold this step's keys and values. A sequence's rows are its last
    ones: row i of n sees its first context − n + i + 1 positions; under the plan's window, the last `window` of these.
    With a soft cap, scale · q·k passes through `soft_cap` before the softmax.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    keys, values = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    for group in plan:
        out[group.rows] = _attend(q.index_select(0, group.rows), keys, values, group, scale, soft_cap)
    return out


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup, scale: float, soft_cap: float | None
) -> Tensor:
    """The rows of one group, [sequences · rows each, H, D]; query heads of one key-value head are computed together."""
    count, longest = group.slots.shape
    kv_heads, head_size = keys.shape[1:]
    shape = (count, longest, kv_heads, head_size)
    slots = group.slots.flatten()
    k = keys.index_select(0, slots).view(shape).transpose(1, 2)
    v = values.index_select(0, slots).view(shape).transpose(1, 2)
    per_kv = q.shape[1] // kv_heads
    if q.shape[0] == count:  # decode: a key-value head's query heads stand where its query rows would
        o = _softmax_values(q.view(count, kv_heads, per_kv, head_size), k, v, group.mask, scale, soft_cap)
        return o.reshape(q.shape)
    wide = (kv_heads, per_kv, longest, head_size)
    k, v = k.transpose(0, 1).expand(wide), v.transpose(0, 1).expand(wide)
    heads_first = q.view(-1, kv_heads, per_kv, head_size).permute(1, 2, 0, 3)
    o = _softmax_values(heads_first, k, v, group.mask, scale, soft_cap)
    return o.permute(2, 0, 1, 3).reshape(q.shape)


def _softmax_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    if cap is None:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    scores = soft_cap(scale * (q.float() @ k.float().transpose(-1, -2)), cap) + mask.float()
    return (scores.softmax(dim=-1) @ v.float()).to(q.dtype)


# ---- LoRA -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """All entries, ordered by their place in their row's list, then by slot."""

    rows: Tensor  # [E] int64
    weight: Tensor  # [E, 1] float32
    groups: list[tuple[int, slice]]  # runs of entries that share place and slot: the slot, and where


def plan_lora(entries: LoraEntries) -> LoraPlan:
    """Order the entries so that every row adds in the order of its list, whatever the slots' numbers are; a plan serves
    every layer of one step."""
    counts = entries.indptr.diff()
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    places = torch.arange(len(rows), device=counts.device) - entries.indptr[rows]
    keys = places * (entries.slot.amax() + 1 if len(rows) else 1) + entries.slot
    keys, order = keys.sort(stable=True)
    edges = [0, *(keys.diff().nonzero().flatten() + 1).tolist(), len(rows)]
    slots = entries.slot[order].tolist()
    groups = [(slots[start], slice(start, end)) for start, end in pairwise(edges) if start < end]
    return LoraPlan(rows[order], entries.weight[order].unsqueeze(1), groups)


def lora_(y: Tensor, x: Tensor, plan: LoraPlan, table: Changes, bias: Tensor | None) -> None:
    """y[t] += Σ_e weight_e · ΔW_e x[t] over the entries e of row t, in place (Hu et al., 2021).

    y [T, out] is W·x[t] + bias when it comes; x [T, in], bias [out]. table[slot] holds ΔW (see types), or None where
    the slot leaves this layer alone. The sum is taken in float32 and added to y once.
    """

    def effect(change: Change, rows: Tensor) -> Tensor:
        inputs = x.index_select(0, rows).float()
        if isinstance(change, Difference):
            return inputs @ change.weight.float().T
        return _low_rank(change, inputs @ change.a.float().T, y, rows, bias)

    _add(y, plan, table, effect)


def lora_embedding_(y: Tensor, tokens: Tensor, plan: LoraPlan, table: Changes) -> None:
    """y[t] += Σ_e weight_e · ΔW_e[tokens[t]] over the entries e of row t, in place.

    y [T, out] is the embedding's row tokens[t] when it comes, in an embedding W [vocabulary, out].
    """

    def effect(change: Change, rows: Tensor) -> Tensor:
        chosen = tokens.index_select(0, rows)
        if isinstance(change, Difference):
            return change.weight.index_select(0, chosen).float()
        return _low_rank(change, change.a.index_select(1, chosen).float().T, y, rows, None)

    _add(y, plan, table, effect)


def lora_vector_(y: Tensor, plan: LoraPlan, table: Changes) -> None:
    """y[t] += Σ_e weight_e · Δw_e over the entries e of row t, in place; y [T, n], Δw [n] a Difference."""

    def effect(change: Change, rows: Tensor) -> Tensor:
        assert isinstance(change, Difference), "a vector has no factors"
        return change.weight.float().expand(len(rows), -1)

    _add(y, plan, table, effect)


def _low_rank(factors: LoraFactors, shrunk: Tensor, y: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """ΔW x of rows whose A·x is `shrunk`, and whose W·x + bias are in y."""
    effect = shrunk.mul_(factors.scale) @ factors.b.float().T
    if factors.stretch is None:
        return effect
    base = y.index_select(0, rows).float()
    return effect + factors.stretch * (base if bias is None else base - bias.float())


def _add(y: Tensor, plan: LoraPlan, table: Changes, effect: Callable[[Change, Tensor], Tensor]) -> None:
    """y[t] += Σ_e weight_e · effect(table[slot_e], t)."""
    if not any(table[slot] for slot, _ in plan.groups):
        return
    effects = torch.zeros(len(plan.rows), y.shape[1], device=y.device)
    for slot, span in plan.groups:
        if (change := table[slot]) is not None:
            torch.mul(effect(change, plan.rows[span]), plan.weight[span], out=effects[span])
    y.add_(torch.zeros(y.shape, device=y.device).index_add_(0, plan.rows, effects))


def row_norms(weight: Tensor, factors: LoraFactors) -> Tensor:
    """‖W + scale·B·A‖ of each output's row, [out] float32; W [out, in]."""
    norms = []
    for i in range(0, len(weight), _WIDEN_ROWS):  # the sum of a whole head would be large
        rows, b = weight[i : i + _WIDEN_ROWS].float(), factors.b[i : i + _WIDEN_ROWS].float()
        whole = torch.addmm(rows, b, factors.a.float(), alpha=factors.scale)
        norms.append(torch.linalg.vector_norm(whole, dim=1))
    return torch.cat(norms)


# ---- sampling -------------------------------------------------------------------------------------------------------


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """The next token of each row, [N] int64.

    temperature 0: argmax_v ℓ_v. Else argmax over the survivors of ℓ_v + T·g_v, which draws from softmax(ℓ/T) over them
    (Gumbel-max): g = −log(−log u), u = (word + 0.5)·2⁻³², word the first of Philox4x32-10 with key `seed` and counter
    (position, v, 0, 0). Ties go to the lowest id. Survivors: the top_k largest ℓ (0: all); of these the shortest prefix
    in descending order whose mass under softmax(ℓ/T) reaches top_p.

    logits [N, V] float32, finite; temperature, top_p [N] float64; top_k, position [N] int64; seed [N] int64, the bits
    of an unsigned 64-bit number. position is the index of the sampled token in its whole sequence.
    """
    chosen = logits.argmax(dim=-1)
    for row in temperature.nonzero().flatten().tolist():
        t = float(temperature[row])
        tokens, scores = _survivors(logits[row].double(), t, int(top_k[row]), float(top_p[row]))
        perturbed = scores + t * gumbel(seed[row], position[row], tokens)
        chosen[row] = tokens[perturbed.argmax()]
    return chosen


def _survivors(scores: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Token ids in ascending order, and their scores."""
    tokens = torch.arange(len(scores), device=scores.device)
    if top_k in range(1, len(scores)) or top_p < 1.0:
        ordered, by_rank = scores.sort(descending=True, stable=True)
        kept = ordered[: top_k or None]
        if top_p < 1.0:
            mass = (kept / temperature).softmax(dim=0).cumsum(dim=0)
            kept = kept[: int((mass < top_p).sum()) + 1]
        tokens = by_rank[: len(kept)].sort().values
    return tokens, scores[tokens]


def gumbel(seed: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of `tokens` (any shape) at one position under one seed, float64; see `sample`."""
    zero = torch.zeros_like(position)
    word = philox4x32_10((position, tokens, zero, zero), (seed & _WORD, (seed >> 32) & _WORD))[0]
    return -torch.log(-torch.log((word.double() + 0.5) * 2.0**-32))


_WORD = 0xFFFFFFFF


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 (Salmon et al., 2011). Words are int64 tensors in 0..2³²−1 that broadcast together.

    Each round maps (c0, c1, c2, c3) to (hi(M1·c2) ⊕ c1 ⊕ k0, lo(M1·c2), hi(M0·c0) ⊕ c3 ⊕ k1, lo(M0·c0)); the key then
    grows by the Weyl constants.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64-bit products; their sign bit is but a bit
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3
