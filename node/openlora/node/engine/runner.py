"""One forward pass for any mix of chunks: from sequences to tensors, and back to tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Protocol

import torch
from torch import Tensor

from openlora.kernels.ops import AttentionPlan, LoraPlan, Ops
from openlora.kernels.types import AttentionBatch, LoraEntries
from openlora.node.engine.lora_tables import FactorStore, LoraTables
from openlora.node.engine.models.batch import Batch, KvCache, LoraBatch
from openlora.node.engine.models.decoder import Decoder
from openlora.node.engine.pace import BLOCK
from openlora.node.engine.sampling import choose
from openlora.node.engine.sequence import Chunk


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a pass yields for the chunks' output rows, in order."""

    tokens: Sequence[int | None]  # drawn as each sequence's sampling says; None where the logits are not all finite
    logits: Tensor | None  # [N, vocabulary] float32; None where the runner made none because nobody had asked


class Runner(Protocol):
    """A model that computes: its weights, its cache's memory and its adapters' factors.

    Who holds which pages and slots is the allocator's and the pool's affair.
    """

    @property
    def backend(self) -> str:
        """The kernels' name, for people."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def form(self) -> str:
        """What the weights were rounded to, as DecoderWeights has it."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def factors(self) -> FactorStore: ...

    @property
    def exact(self) -> bool:
        """Whether a row has the same logits, bit for bit, however its sequence is cut into chunks. Only then may chunks
        have drafts."""
        ...

    @property
    def row_block(self) -> int:
        """How many rows it computes together: until they are full, a further one takes next to no time."""
        ...

    def run(self, chunks: Sequence[Chunk]) -> Outputs:
        """Compute the chunks into the cache. Logits are there if a chunk's sequence samples nothing, or reports
        log-probabilities."""
        ...


class OpsRunner:
    """The model written in ops, a call each: every dtype, device and model that is served."""

    exact = False  # torch's products sum in an order that depends on their shapes
    row_block = BLOCK

    def __init__(self, model: Decoder, ops: Ops, pages: int, page_tokens: int) -> None:
        config = model.config
        self.backend = ops.name
        self.dtype = model.dtype
        self.form = model.form
        self.device = model.device
        self.factors = LoraTables(lambda: ops.lora_table(model.device))
        self._model = model
        self._ops = ops
        self._page_tokens = page_tokens
        shape = (pages, page_tokens, config.kv_heads, config.head_size)
        self._cache = KvCache.empty(config.layers, shape, model.dtype, model.device)

    def run(self, chunks: Sequence[Chunk]) -> Outputs:
        logits = self._model.forward(self._batch(chunks), self._cache)
        sequences = [chunk.sequence for chunk in chunks for _ in range(chunk.outputs)]
        return Outputs(choose(self._ops, logits, sequences), logits)

    def _batch(self, chunks: Sequence[Chunk]) -> Batch:
        lengths = [chunk.length for chunk in chunks]
        ends = list(accumulate(lengths))
        positions = self._index(chain.from_iterable(range(chunk.start, chunk.end) for chunk in chunks))
        attention = AttentionBatch(
            row_starts=self._index([0, *ends]),
            context_lens=self._index(chunk.end for chunk in chunks),
            page_table=self._page_table(chunks),
        )
        owner = torch.arange(len(chunks), device=positions.device).repeat_interleave(self._index(lengths))
        pages = attention.page_table[owner, positions // self._page_tokens]
        outputs = chain.from_iterable(range(end - chunk.outputs, end) for chunk, end in zip(chunks, ends, strict=True))
        return Batch(
            tokens=self._index(chain.from_iterable(c.sequence.tokens[c.start : c.end] for c in chunks)),
            positions=positions,
            slots=pages * self._page_tokens + positions % self._page_tokens,
            attention={window: self._plan_attention(attention, window) for window in set(self._model.config.windows)},
            output_rows=self._index(outputs),
            lora=self._lora(chunks, [chunk.length for chunk in chunks]),
            output_lora=self._lora(chunks, [chunk.outputs for chunk in chunks]),
        )

    def _plan_attention(self, batch: AttentionBatch, window: int | None) -> AttentionPlan:
        return self._ops.plan_attention(batch, self._page_tokens, self._model.dtype, window)

    def _page_table(self, chunks: Sequence[Chunk]) -> Tensor:
        """Padded with page 0, which is never read for it."""
        width = max(len(chunk.sequence.pages) for chunk in chunks)
        rows = (chunk.sequence.pages + [0] * (width - len(chunk.sequence.pages)) for chunk in chunks)
        return self._index(chain.from_iterable(rows)).view(len(chunks), width)

    def _lora(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> LoraBatch | None:
        """The adapters of `rows` rows of each chunk."""
        if not any(chunk.sequence.adapters for chunk in chunks):
            return None
        return LoraBatch(self._lora_plan(chunks, rows), self.factors)

    def _lora_plan(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> LoraPlan:
        """Every row of a chunk carries the entries of its sequence's recipe."""
        repeated = [chunk.sequence.adapters for chunk, n in zip(chunks, rows, strict=True) for _ in range(n)]
        entries = list(chain.from_iterable(repeated))
        return self._ops.plan_lora(
            LoraEntries(
                indptr=self._index([0, *accumulate(map(len, repeated))]),
                slot=self._index(adapter.slot for adapter, _ in entries),
                weight=torch.tensor([weight for _, weight in entries], dtype=torch.float32, device=self._model.device),
            )
        )

    def _index(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=self._model.device)
