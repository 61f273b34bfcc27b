"""Paged attention by FlashInfer where it is installed (Ye et al., 2025; https://docs.flashinfer.ai).

It takes over from another backend for the dtypes and head sizes that it has kernels for. Batches that only decode go to
its decode wrapper, all others as a whole to its prefill wrapper. A captured graph keeps the other backend's kernel:
FlashInfer's would have to be planned anew before every repetition.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from openlora.kernels.ops import Backend
from openlora.kernels.types import AttentionBatch

HEAD_SIZES = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
WORKSPACE_BYTES = 128 << 20  # what its documentation recommends
LAYOUT = "NHD"  # [pages, page tokens, key-value heads, head size]


def with_flashinfer(backend: Backend, device: torch.device) -> Backend:
    """`backend` with FlashInfer's attention, or as it is where FlashInfer is not installed."""
    try:
        library = importlib.import_module("flashinfer")
    except ImportError:
        return backend
    return joined(backend, device, library)


def joined(backend: Backend, device: torch.device, library: Any) -> Backend:
    attention = FlashInferAttention(backend, device, library)
    name = f"{backend.name}+flashinfer"
    return replace(backend, name=name, plan_attention=attention.plan, paged_attention=attention.attend)


@dataclass(slots=True)
class FlashInferPlan:
    """A batch under one window; whose kernels serve it is known when the first layer comes."""

    batch: AttentionBatch
    page_tokens: int
    dtype: torch.dtype
    window: int | None
    planned: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class FlashInferAttention:
    """One wrapper for each kind of batch and window, planned once a step; all share one workspace, since what runs on
    one stream runs in turn."""

    def __init__(self, backend: Backend, device: torch.device, library: Any) -> None:
        self._backend = backend
        self._library = library
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[bool, int | None], Any] = {}

    def plan(self, batch: AttentionBatch, page_tokens: int, dtype: torch.dtype, window: int | None) -> Any:
        return FlashInferPlan(batch, page_tokens, dtype, window)

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Any, scale: float, soft_cap: float | None
    ) -> Tensor:
        if not isinstance(plan, FlashInferPlan):  # of a captured graph
            return self._backend.paged_attention(q, k_cache, v_cache, plan, scale, soft_cap)
        if plan.planned is None:
            served = q.dtype in DTYPES and q.shape[2] in HEAD_SIZES
            make = self._own if served else self._other
            plan.planned = make(plan, (q.shape[1], k_cache.shape[2], q.shape[2]), scale, soft_cap)
        return plan.planned(q, k_cache, v_cache)

    def _other(
        self, plan: FlashInferPlan, _: tuple[int, int, int], scale: float, soft_cap: float | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        prepared = self._backend.plan_attention(plan.batch, plan.page_tokens, plan.dtype, plan.window)

        def run(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            return self._backend.paged_attention(q, k_cache, v_cache, prepared, scale, soft_cap)

        return run

    def _own(
        self, plan: FlashInferPlan, shape: tuple[int, int, int], scale: float, soft_cap: float | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        batch, (heads, kv_heads, head_size) = plan.batch, shape
        decodes = int(batch.row_starts[-1]) == len(batch.context_lens)
        wrapper = self._wrapper(decodes, plan.window)
        indptr, indices, last_page_len = _pages(batch, plan.page_tokens)
        left = -1 if plan.window is None else plan.window - 1  # that many positions before a row's own
        settings = {"sm_scale": scale, "logits_soft_cap": soft_cap, "window_left": left, "q_data_type": plan.dtype}
        if decodes:
            wrapper.plan(indptr, indices, last_page_len, heads, kv_heads, head_size, plan.page_tokens, **settings)
        else:
            starts = batch.row_starts.int()
            wrapper.plan(
                starts,
                indptr,
                indices,
                last_page_len,
                heads,
                kv_heads,
                head_size,
                plan.page_tokens,
                causal=True,
                **settings,
            )

        def run(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            found: Tensor = wrapper.run(q.contiguous(), (k_cache, v_cache))
            return found

        return run

    def _wrapper(self, decodes: bool, window: int | None) -> Any:
        if (decodes, window) not in self._wrappers:
            library = self._library
            if decodes:
                # its other decode kernel has not every number of query heads a key-value head
                made = library.BatchDecodeWithPagedKVCacheWrapper(self._workspace, LAYOUT, use_tensor_cores=True)
            else:
                made = library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT)
            self._wrappers[decodes, window] = made
        return self._wrappers[decodes, window]


def _pages(batch: AttentionBatch, page_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences' pages as a CSR list (indptr, pages), and the tokens in the last page of each; int32."""
    counts = (batch.context_lens + page_tokens - 1) // page_tokens
    indptr = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    indptr[1:] = counts.cumsum(0)
    columns = torch.arange(batch.page_table.shape[1], device=counts.device)
    indices = batch.page_table[columns < counts.unsqueeze(1)].int()
    return indptr, indices, ((batch.context_lens - 1) % page_tokens + 1).int()
