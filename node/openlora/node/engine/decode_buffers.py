"""The inputs of a decoding step, in one block of memory whose place never changes.

A step of a certain size is captured once and repeated with other content, so everything that depends on the requests
lies here: filled on the host, sent in one copy. Rows that no request needs compute token 0 at position 0 of a page that
is nobody's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from openlora.kernels import ops
from openlora.kernels.triton import attention, lora
from openlora.node.engine.lora_tables import LoraTables
from openlora.node.engine.models.batch import Batch, LoraBatch
from openlora.node.engine.sequence import Chunk

_ALIGNED = 4  # int32 in 16 bytes
_ROWS_STEP = 8  # beyond this many rows, sizes are its multiples


@dataclass(frozen=True, slots=True)
class DecodeSize:
    """What a captured step has room for."""

    rows: int
    pages: int  # of one sequence
    entries: int  # of adapters, in all rows together; 0: the step applies none
    alone: bool = True  # every row has one entry at most

    @classmethod
    def of(cls, chunks: Sequence[Chunk], most_rows: int) -> "DecodeSize":
        """The smallest of a few sizes that holds the chunks, one row each."""
        count = len(chunks)
        rounded = _power_of_2(count) if count <= _ROWS_STEP else -(-count // _ROWS_STEP) * _ROWS_STEP
        rows = max(count, min(rounded, most_rows))
        entries = [len(chunk.sequence.adapters) for chunk in chunks]
        pages = _power_of_2(max(len(chunk.sequence.pages) for chunk in chunks))
        if max(entries) <= 1:
            return cls(rows, pages, rows if any(entries) else 0)
        return cls(rows, pages, max(rows, _power_of_2(sum(entries))), alone=False)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _aligned(numbers: int) -> int:
    """Room for that many int32 that ends where the next ones may begin: kernels are compiled for such pointers."""
    return -(-numbers // _ALIGNED) * _ALIGNED


class DecodeBuffers:
    """The inputs of one size of step, and the batch that reads them."""

    def __init__(self, size: DecodeSize, page_tokens: int, spare_page: int, device: torch.device) -> None:
        """`spare_page` is what the rows that nobody needs write to."""
        self._size = size
        self._page_tokens = page_tokens
        self._spare_page = spare_page
        rows, entries = size.rows, size.entries
        shapes = {
            "tokens": (rows,),
            "positions": (rows,),
            "slots": (rows,),
            "context_lens": (rows,),
            "page_table": (rows, size.pages),
            "indptr": (rows + 1,),
            "tiles": (entries, 3),
            "entry": (entries,),
            "row": (entries,),
            "weight": (entries,),
        }
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        total = sum(map(_aligned, sizes.values()))
        pinned = device.type == "cuda"
        self._sent = torch.zeros(total, dtype=torch.int32, pin_memory=pinned)
        self._block = torch.zeros(total, dtype=torch.int32, device=device)
        self._host: dict[str, np.ndarray] = {}
        self._views: dict[str, Tensor] = {}
        start = 0
        for name, shape in shapes.items():
            end = start + sizes[name]
            self._host[name] = self._sent[start:end].numpy().reshape(shape)
            self._views[name] = self._block[start:end].view(shape)
            start += _aligned(sizes[name])
        self._host["weight"] = self._host["weight"].view(np.float32)
        self._views["weight"] = self._views["weight"].view(torch.float32)
        self._rows = torch.arange(rows + 1, dtype=torch.int32, device=device)

    def batch(self, windows: set[int | None], tables: LoraTables) -> Batch:
        """The batch of any step that is sent here."""
        views, rows = self._views, self._size.rows
        lora_batch = LoraBatch(self._lora_plan(), tables) if self._size.entries else None
        return Batch(
            tokens=views["tokens"],
            positions=views["positions"],
            slots=views["slots"],
            attention={window: self._attention_plan(window) for window in windows},
            output_rows=self._rows[:rows],
            lora=lora_batch,
            output_lora=lora_batch,
        )

    def send(self, chunks: Sequence[Chunk]) -> None:
        """Let the buffers hold this step. The one before must have been computed."""
        count, host, size = len(chunks), self._host, self._page_tokens
        starts = [chunk.start for chunk in chunks]
        host["tokens"][:count] = [chunk.sequence.tokens[chunk.start] for chunk in chunks]
        host["tokens"][count:] = 0
        host["positions"][:count] = starts
        host["positions"][count:] = 0
        host["slots"][:count] = [c.sequence.pages[c.start // size] * size + c.start % size for c in chunks]
        host["slots"][count:] = self._spare_page * size
        host["context_lens"][:count] = [start + 1 for start in starts]
        host["context_lens"][count:] = 1
        host["page_table"][:] = self._spare_page
        for row, chunk in enumerate(chunks):
            host["page_table"][row, : len(chunk.sequence.pages)] = chunk.sequence.pages
        if self._size.entries:
            self._fill_entries(chunks)
        self._block.copy_(self._sent, non_blocking=True)

    def _fill_entries(self, chunks: Sequence[Chunk]) -> None:
        host, recipes = self._host, [chunk.sequence.adapters for chunk in chunks]
        used = list(chain.from_iterable(recipes))
        owner = [row for row, recipe in enumerate(recipes) for _ in recipe]
        order, _, tiles = lora.sorted_by_slot([adapter.slot for adapter, _ in used])
        host["indptr"][: len(chunks) + 1] = [0, *accumulate(map(len, recipes))]
        host["indptr"][len(chunks) + 1 :] = len(used)
        host["tiles"][: len(tiles)] = tiles
        host["tiles"][len(tiles) :] = 0
        host["entry"][: len(used)] = order
        host["row"][: len(used)] = [owner[entry] for entry in order]
        host["weight"][: len(used)] = [used[entry][1] for entry in order]

    def _attention_plan(self, window: int | None) -> ops.AttentionPlan:
        views, rows = self._views, self._size.rows
        prepared = attention.AttentionPlan(
            row_starts=self._rows,
            context_lens=views["context_lens"],
            page_table=views["page_table"],
            decodes=attention.Members(self._rows[:rows], 1),
            prompts=attention.Members(self._rows[:0], 0),
            page_tokens=self._page_tokens,
            window=window,
        )
        return ops.AttentionPlan(rows, self._page_tokens, prepared)

    def _lora_plan(self) -> ops.LoraPlan:
        views = self._views
        prepared = lora.LoraPlan(
            groups=(),
            slots=None,
            tiles=views["tiles"],
            entry=views["entry"],
            row=views["row"],
            weight=views["weight"],
            indptr=views["indptr"],
            alone=self._size.alone,
        )
        return ops.LoraPlan(self._size.rows, 0, prepared)
