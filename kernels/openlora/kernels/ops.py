"""The ops as the engine calls them: arguments checked once, then the chosen backend.

`reference` defines what each op computes. A backend is one `Backend` of functions with the reference's signatures; its
plans are its own affair, made once a step and passed back to it at every layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openlora.kernels import reference
from openlora.kernels.types import (
    AttentionBatch,
    Changes,
    ChangeTable,
    CodedWeight,
    Int4Weight,
    Int8Weight,
    LoraEntries,
    Weight,
)


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of every op; see `reference` for each function's contract."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    gelu_tanh_mul: Callable[[Tensor], Tensor]
    gelu: Callable[[Tensor], Tensor]
    soft_cap: Callable[[Tensor, float], Tensor]
    rope_: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    kv_append_: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    plan_attention: Callable[[AttentionBatch, int, torch.dtype, int | None], Any]
    paged_attention: Callable[[Tensor, Tensor, Tensor, Any, float, float | None], Tensor]
    plan_lora: Callable[[LoraEntries], Any]
    lora_: Callable[[Tensor, Tensor, Any, Changes, Tensor | None], None]
    lora_embedding_: Callable[[Tensor, Tensor, Any, Changes], None]
    lora_vector_: Callable[[Tensor, Any, Changes], None]
    sample: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    linear_int8: Callable[[Tensor, Int8Weight, Tensor | None, torch.dtype], Tensor] = reference.linear_int8
    linear_coded: Callable[[Tensor, CodedWeight, Tensor | None, torch.dtype], Tensor] = reference.linear_coded
    lora_table: Callable[[torch.device], ChangeTable] = lambda _: []
    linear_int4: Callable[[Tensor, Int4Weight, Tensor | None, torch.dtype], Tensor] = reference.linear_int4


BACKENDS: Mapping[str, Backend] = {
    "reference": Backend(
        name="reference",
        rms_norm=reference.rms_norm,
        linear=reference.linear,
        layer_norm=reference.layer_norm,
        silu_mul=reference.silu_mul,
        gelu_tanh_mul=reference.gelu_tanh_mul,
        gelu=reference.gelu,
        soft_cap=reference.soft_cap,
        rope_=reference.rope_,
        kv_append_=reference.kv_append_,
        plan_attention=reference.plan_attention,
        paged_attention=reference.paged_attention,
        plan_lora=reference.plan_lora,
        lora_=reference.lora_,
        lora_embedding_=reference.lora_embedding_,
        lora_vector_=reference.lora_vector_,
        sample=reference.sample,
    )
}


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A checked AttentionBatch, prepared by a backend for the layers of one step."""

    rows: int
    page_tokens: int
    prepared: Any


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Checked LoraEntries, prepared by a backend for the layers of one step."""

    rows: int
    slots: int  # every slot named is below
    prepared: Any


class Ops:
    """The ops of one backend. Shapes and dtypes that an op is not defined for raise ValueError."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        fits = weight.shape[-1:] == x.shape[-1:] and weight.shape[:-1] in ((), x.shape[:-1], (len(x), 1))
        _require(fits, "rms_norm: weight does not fit x", x, weight)
        return self._backend.rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        fits = weight.shape == bias.shape == x.shape[-1:]
        _require(fits, "layer_norm: weight and bias do not fit x", x, weight, bias)
        return self._backend.layer_norm(x, weight, bias, eps)

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        numbers = weight if isinstance(weight, Tensor) else weight.codes
        _require(x.ndim == 2 and numbers.ndim == 2, "linear: x and weight are matrices", x, numbers)
        inputs = weight.inputs if isinstance(weight, Int4Weight) else numbers.shape[1]
        _require(x.shape[1] == inputs, "linear: weight does not fit x", x, numbers)
        if bias is not None:
            _require(bias.shape == numbers.shape[:1], "linear: bias does not fit weight", bias, numbers)
        match weight:
            case Int8Weight(codes, scale):
                _require(codes.dtype == torch.int8 and scale.shape == codes.shape[:1], "linear: scale", codes, scale)
                return self._backend.linear_int8(x, weight, bias, out_dtype or x.dtype)
            case CodedWeight(codes, scales, minima, _, group):
                groups = (len(codes), -(-codes.shape[1] // group))
                _require(codes.dtype == torch.int8 and scales.shape == groups, "linear: scales", codes, scales)
                _require(minima is None or minima.shape == groups, "linear: minima do not fit scales", scales)
                return self._backend.linear_coded(x, weight, bias, out_dtype or x.dtype)
            case Int4Weight(codes, scales, minima, inputs, group):
                groups, bytes_a_row = (len(codes), -(-inputs // group)), 32 * -(-inputs // 64)
                fits = codes.dtype == torch.uint8 and codes.shape[1] == bytes_a_row and scales.shape == groups
                _require(fits, "linear: scales", codes, scales)
                _require(minima is None or minima.shape == groups, "linear: minima do not fit scales", scales)
                return self._backend.linear_int4(x, weight, bias, out_dtype or x.dtype)
        _require(x.dtype == weight.dtype, "linear: weight does not fit x", x, weight)
        return self._backend.linear(x, weight, bias, out_dtype or x.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        _require(gate_up.ndim == 2 and gate_up.shape[1] % 2 == 0, "silu_mul: two equal halves are needed", gate_up)
        return self._backend.silu_mul(gate_up)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        halves = gate_up.ndim == 2 and gate_up.shape[1] % 2 == 0
        _require(halves, "gelu_tanh_mul: two equal halves are needed", gate_up)
        return self._backend.gelu_tanh_mul(gate_up)

    def gelu(self, x: Tensor) -> Tensor:
        return self._backend.gelu(x)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        _require(cap > 0, f"soft_cap: a cap of {cap}", x)
        return self._backend.soft_cap(x, cap)

    def rope_(self, q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> None:
        """Positions must be rows of the table; that alone is not checked, since they are data."""
        _require(q.ndim == 3 and k.ndim == 3 and q.shape[::2] == k.shape[::2], "rope: q and k do not fit", q, k)
        _require(q.shape[2] % 2 == 0 and table.shape[1:] == q.shape[2:], "rope: table does not fit q", table, q)
        _require(positions.shape == q.shape[:1], "rope: one position a row", positions, q)
        self._backend.rope_(q, k, positions, table)

    def kv_append_(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        _require(k.shape == v.shape and k_cache.shape == v_cache.shape, "kv_append: k and v differ", k, v)
        _require(k.ndim == 3 and k_cache.ndim == 4, "kv_append: ranks", k, k_cache)
        _require(k.shape[1:] == k_cache.shape[2:] and k.dtype == k_cache.dtype, "kv_append: cache of", k_cache, k)
        _require(slots.shape == k.shape[:1], "kv_append: one slot a row", slots, k)
        self._backend.kv_append_(k, v, k_cache, v_cache, slots)

    def plan_attention(
        self, batch: AttentionBatch, page_tokens: int, dtype: torch.dtype, window: int | None = None
    ) -> AttentionPlan:
        sequences = len(batch.context_lens)
        rows = batch.row_starts.diff()
        _require(batch.row_starts.shape == (sequences + 1,), "plan_attention: row_starts", batch.row_starts)
        _require(batch.page_table.ndim == 2 and len(batch.page_table) == sequences, "plan_attention", batch.page_table)
        _require(bool((rows >= 1).all() & (rows <= batch.context_lens).all()), "plan_attention: rows a sequence", rows)
        _require(window is None or window >= 1, f"plan_attention: a window of {window}")
        capacity = batch.page_table.shape[1] * page_tokens
        _require(
            int(batch.context_lens.max()) <= capacity, "plan_attention: more tokens than pages", batch.context_lens
        )
        prepared = self._backend.plan_attention(batch, page_tokens, dtype, window)
        return AttentionPlan(int(batch.row_starts[-1]), page_tokens, prepared)

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        scale: float,
        soft_cap: float | None = None,
    ) -> Tensor:
        _require(q.ndim == 3 and len(q) == plan.rows, "paged_attention: q does not fit the plan", q)
        _require(k_cache.shape == v_cache.shape and k_cache.ndim == 4, "paged_attention: caches", k_cache, v_cache)
        _require(k_cache.shape[1] == plan.page_tokens, "paged_attention: page size differs from the plan's", k_cache)
        _require(q.shape[2] == k_cache.shape[3] and q.shape[1] % k_cache.shape[2] == 0, "paged_attention", q, k_cache)
        _require(soft_cap is None or soft_cap > 0, f"paged_attention: a soft cap of {soft_cap}")
        return self._backend.paged_attention(q, k_cache, v_cache, plan.prepared, scale, soft_cap)

    def plan_lora(self, entries: LoraEntries) -> LoraPlan:
        count = len(entries.slot)
        _require(entries.weight.shape == (count,), "plan_lora: one weight an entry", entries.weight)
        _require(int(entries.indptr[0]) == 0 and int(entries.indptr[-1]) == count, "plan_lora: indptr", entries.indptr)
        _require(bool((entries.indptr.diff() >= 0).all()), "plan_lora: indptr falls", entries.indptr)
        _require(count == 0 or int(entries.slot.min()) >= 0, "plan_lora: negative slot", entries.slot)
        slots = int(entries.slot.max()) + 1 if count else 0
        return LoraPlan(len(entries.indptr) - 1, slots, self._backend.plan_lora(entries))

    def lora_table(self, device: torch.device) -> ChangeTable:
        """An empty table, in the form that the LoRA ops read fastest."""
        return self._backend.lora_table(device)

    def lora_(self, y: Tensor, x: Tensor, plan: LoraPlan, table: Changes, bias: Tensor | None = None) -> None:
        """The shapes of the changes are not checked here, but where an adapter enters a slot."""
        _require(len(x) == len(y) == plan.rows, "lora: x and y do not fit the plan", x, y)
        _require(plan.slots <= len(table), "lora: the plan names a slot beyond the table", x)
        self._backend.lora_(y, x, plan.prepared, table, bias)

    def lora_embedding_(self, y: Tensor, tokens: Tensor, plan: LoraPlan, table: Changes) -> None:
        """As in lora_; tokens must be the embedding's, which is not checked, since they are data."""
        _require(tokens.shape == y.shape[:1], "lora_embedding: one token a row", tokens, y)
        _require(len(y) == plan.rows, "lora_embedding: y does not fit the plan", y)
        _require(plan.slots <= len(table), "lora_embedding: the plan names a slot beyond the table", y)
        self._backend.lora_embedding_(y, tokens, plan.prepared, table)

    def lora_vector_(self, y: Tensor, plan: LoraPlan, table: Changes) -> None:
        _require(len(y) == plan.rows, "lora_vector: y does not fit the plan", y)
        _require(plan.slots <= len(table), "lora_vector: the plan names a slot beyond the table", y)
        self._backend.lora_vector_(y, plan.prepared, table)

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor, position: Tensor
    ) -> Tensor:
        _require(logits.ndim == 2 and logits.dtype == torch.float32, "sample: logits", logits)
        for x in (temperature, top_k, top_p, seed, position):
            _require(x.shape == logits.shape[:1], "sample: one value a row", x, logits)
        _require(bool(((top_p > 0) & (top_p <= 1)).all()), "sample: top_p outside (0, 1]", top_p)
        _require(bool(((temperature >= 0) & (top_k >= 0)).all()), "sample: negative temperature or top_k", temperature)
        return self._backend.sample(logits, temperature, top_k, top_p, seed, position)


def _require(holds: bool, message: str, *tensors: Tensor) -> None:
    if not holds:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in tensors)
        raise ValueError(f"{message} ({shapes})")
