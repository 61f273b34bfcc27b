"""The runner of CUDA devices: Triton's kernels, and steps that only decode repeated as captured graphs.

A GPU has done a decoding step's kernels sooner than the processor has launched them one by one. So such steps are
captured, one for each of a few sizes, and repeated with other content in the same buffers. Everything else (prompts,
prompts beside decoding, adapters that replace weights) is launched kernel by kernel, and so is decoding where capturing
fails.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openlora.kernels.ops import Ops
from openlora.kernels.quantised import pack_int4
from openlora.kernels.triton.lora_table import FactorTable
from openlora.kernels.types import CodedWeight
from openlora.node.engine.decode_buffers import DecodeBuffers, DecodeSize
from openlora.node.engine.graphs import Graphs, Step
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.decoder import Decoder, DecoderWeights, Projection, with_projections
from openlora.node.engine.runner import OpsRunner, Outputs
from openlora.node.engine.sampling import choose
from openlora.node.engine.sequence import Chunk

MAX_GRAPHS = 64  # the size used least recently is forgotten
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Captured:
    buffers: DecodeBuffers
    repeat: Step


class CudaRunner(OpsRunner):
    """Its `ops` are Triton's. Logits hold until the next run."""

    def __init__(self, model: Decoder, ops: Ops, limits: EngineLimits, graphs: Graphs | None) -> None:
        """Without `graphs` every kernel is launched by itself."""
        super().__init__(model, ops, limits.pages + 1, limits.page_tokens)
        self._spare_page = limits.pages
        self._max_rows = limits.max_running
        self._graphs = graphs
        self._captured: OrderedDict[DecodeSize, _Captured] = OrderedDict()
        self._tables_version = 0
        self._launches: dict[str, tuple[object, ...]] = {}  # how each module's adapters are applied, as captured

    def run(self, chunks: Sequence[Chunk]) -> Outputs:
        if not self._only_decodes(chunks) or (step := self._step(chunks)) is None:
            return super().run(chunks)
        step.buffers.send(chunks)
        logits = step.repeat()[: len(chunks)]
        return Outputs(choose(self._ops, logits, [chunk.sequence for chunk in chunks]), logits)

    def _only_decodes(self, chunks: Sequence[Chunk]) -> bool:
        """One output row each, and no adapter that replaces a weight."""
        replacing = self.factors.replacing
        return all(
            chunk.length == 1
            and chunk.outputs == 1
            and not (replacing and any(adapter.slot in replacing for adapter, _ in chunk.sequence.adapters))
            for chunk in chunks
        )

    def _step(self, chunks: Sequence[Chunk]) -> _Captured | None:
        """The captured step that has room for the chunks; None where steps cannot be captured."""
        if self._graphs is None:
            return None
        self._forget_stale()
        size = DecodeSize.of(chunks, self._max_rows)
        if size in self._captured:
            self._captured.move_to_end(size)
            return self._captured[size]
        buffers = DecodeBuffers(size, self._page_tokens, self._spare_page, self.device)
        batch = buffers.batch(set(self._model.config.windows), self.factors)
        buffers.send(chunks)
        try:
            repeat = self._graphs.capture(lambda: self._model.forward(batch, self._cache))
        except RuntimeError as error:
            log.warning("event=graphs_unavailable reason=%r", str(error))
            self._graphs = None
            self._captured.clear()
            return None
        if len(self._captured) == MAX_GRAPHS:
            self._captured.popitem(last=False)
        self._captured[size] = _Captured(buffers, repeat)
        return self._captured[size]

    def _forget_stale(self) -> None:
        """Steps with adapters are captured again where other modules have adapters now, or larger ranks."""
        if self._tables_version == self.factors.version:
            return
        self._tables_version = self.factors.version
        launches = {module: table.launch for module, table in self.factors if isinstance(table, FactorTable)}
        if launches != self._launches:
            self._launches = launches
            for size in [size for size in self._captured if size.entries]:
                del self._captured[size]


def packed(weights: DecoderWeights) -> DecoderWeights:
    """Codes of 4 bits two a byte, as the kernels read them."""

    def pack(one: Projection) -> Projection:
        if isinstance(one.weight, CodedWeight) and one.weight.bits == 4:
            return replace(one, weight=pack_int4(one.weight))
        return one

    return with_projections(weights, pack)
