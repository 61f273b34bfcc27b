"""The runner whose steps are one call into C++ each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openlora.kernels.cpu import decoder as cpu
from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.quantised import rows_of
from openlora.kernels.types import Change
from openlora.node.adapters.modules import bias_of
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import DecoderWeights, Layer, Norm, rope_table
from openlora.node.engine.models.names import Names
from openlora.node.engine.pace import BLOCK
from openlora.node.engine.runner import Outputs
from openlora.node.engine.sequence import Chunk
from openlora.node.errors import AdapterError

_GREEDY = Sampling(max_tokens=1, temperature=0.0)


class CompiledRunner:
    """bfloat16 on this machine's processor."""

    exact = True

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        limits: EngineLimits,
        cache_dir: Path,
        instructions: str = "",
    ) -> None:
        """`instructions` as CpuDecoder has them. Raises KernelsUnavailable, naming what is not supported."""
        self._decoder = cpu.CpuDecoder(
            _shape(config),
            cpu.DecoderWeights(
                embedding=weights.embedding,
                layers=[
                    _layer(layer, window, config.names)
                    for layer, window in zip(weights.layers, config.windows, strict=True)
                ],
                norm=weights.norm.weight,
                head=weights.head.weight,
                rope_table=rope_table(config),
            ),
            pages=limits.pages,
            page_tokens=limits.page_tokens,
            threads=torch.get_num_threads(),
            cache_dir=cache_dir,
            instructions=instructions,
        )
        self.backend = f"cpu-{self._decoder.instructions}"
        self.row_block = BLOCK if self._decoder.instructions == "amx" else 1  # vector units take a row's time for each
        self.dtype = torch.bfloat16
        self.form = weights.form
        self.device = torch.device("cpu")
        self.factors = _PackedFactors(self._decoder, config.names)

    def run(self, chunks: Sequence[Chunk]) -> Outputs:
        params = [chunk.sequence.sampling for chunk in chunks]
        drawn = any(p is not None and p.temperature for p in params)
        tokens, logits = self._decoder.step(
            [_rows(chunk) for chunk in chunks],
            [_sampling(chunk, row) for chunk in chunks for row in range(chunk.outputs)] if drawn else None,
            want_logits=any(p is None or p.logprobs is not None for p in params),
        )
        return Outputs([token if token >= 0 else None for token in tokens], logits)


def require_compiled(config: DecoderConfig, limits: EngineLimits, cache_dir: Path) -> None:
    """Raises KernelsUnavailable as CompiledRunner does, before any weight is read."""
    cpu.open_library(_shape(config), limits.page_tokens, cache_dir)


class _PackedFactors:
    """The decoder's adapters as a FactorStore."""

    def __init__(self, decoder: cpu.CpuDecoder, names: Names) -> None:
        self._decoder = decoder
        self._names = names
        self._filled: set[int] = set()

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        try:
            self._decoder.load_adapter(
                slot, {_place(module, self._names): change for module, change in changes.items()}
            )
        except MemoryError as error:
            raise AdapterError(f"the adapter does not fit into this machine's memory: {error}") from error
        self._filled.add(slot)

    def drop(self, slot: int) -> None:
        self._decoder.unload_adapter(slot)
        self._filled.remove(slot)

    def holds(self, slot: int) -> bool:
        return slot in self._filled


def _shape(config: DecoderConfig) -> cpu.DecoderShape:
    """Raises KernelsUnavailable for what the compiled decoder does not compute."""
    refusals = {
        "layer norms": config.layer_norms,
        "MLPs beside attention": config.parallel,
        "MLPs without a gate": config.activation == "gelu",
    }
    if found := [what for what, refused in refusals.items() if refused]:
        raise KernelsUnavailable(f"they do not support {found[0]}")
    return cpu.DecoderShape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        rms_norm_eps=config.norm_eps,
        attention_scale=config.attention_scale,
        embedding_scale=float(torch.tensor(config.embedding_scale, dtype=torch.bfloat16)),
        attention_soft_cap=config.attention_soft_cap or 0.0,
        logit_soft_cap=config.logit_soft_cap or 0.0,
        gelu=config.activation == "gelu_tanh_mul",
    )


def _layer(layer: Layer, window: int | None, names: Names) -> cpu.LayerWeights:
    matrices = {}
    for projection in (layer.qkv, layer.o, layer.gate_up, layer.down):
        for module, columns in projection.parts:
            bias = None if projection.bias is None else projection.bias[columns]
            matrices[_place(module, names)[1]] = (rows_of(projection.weight, columns), bias)
    return cpu.LayerWeights(
        attention_norm=layer.attention_norm.weight,
        mlp_norm=layer.mlp_norm.weight,
        matrices=matrices,
        q_norm=_weight(layer.q_norm),
        k_norm=_weight(layer.k_norm),
        post_attention_norm=_weight(layer.post_attention_norm),
        post_mlp_norm=_weight(layer.post_mlp_norm),
        window=window,
    )


def _weight(norm: Norm | None) -> Tensor | None:
    return None if norm is None else norm.weight


def _place(module: str, names: Names) -> tuple[int, str]:
    """The decoder's name for a module or a bias: its layer, and which matrix, norm or matrix's bias."""
    if module.endswith(suffix := bias_of("")):
        layer, matrix = _place(module.removesuffix(suffix), names)
        return layer, f"{matrix}_bias"
    ends = {names.embedding: (cpu.EMBEDDING, ""), names.head: (cpu.HEAD, "head"), names.norm: (cpu.HEAD, "norm")}
    if module in ends:
        return ends[module]
    number, _, own = module.removeprefix(f"{names.layers}.").partition(".")
    inner = (
        names.attention_norm,
        names.mlp_norm,
        names.post_attention_norm,
        names.post_mlp_norm,
        names.q_norm,
        names.k_norm,
        *names.qkv,
        names.o,
        *names.up,
        names.down,
    )
    return int(number), (*cpu.NORMS, *cpu.MATRICES)[inner.index(own)]


def _rows(chunk: Chunk) -> cpu.Rows:
    sequence = chunk.sequence
    return cpu.Rows(
        tokens=chunk.tokens,
        start=chunk.start,
        pages=sequence.pages,
        adapters=[(adapter.slot, weight) for adapter, weight in sequence.adapters],
        outputs=chunk.outputs,
    )


def _sampling(chunk: Chunk, row: int) -> cpu.Sampling:
    """Of the chunk's output row of that number."""
    p = chunk.sequence.sampling or _GREEDY
    return cpu.Sampling(p.temperature, p.top_k, p.top_p, p.seed, position=len(chunk.sequence.tokens) + row)
