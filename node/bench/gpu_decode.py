"""What a decoding step takes with 0 to 64 distinct adapters in its batch, beside what its bytes alone would take.

The byte roofline: a step reads every matrix once, the batch's keys and values, and each distinct adapter once, at the
speed that this memory copies with. Weights and adapters are random, of a real model's shape.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.gpu_engines import cuda_runner, kernels_on
from torch import Tensor

from openlora.kernels.types import CodedWeight, Int4Weight, Int8Weight, LoraFactors, Weight
from openlora.node.engine.adapter_pool import ResidentAdapter
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import build_weights
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import DecoderWeights
from openlora.node.engine.sequence import Chunk, Sequence

DISTINCT = (0, 1, 8, 32, 64)
RANK = 16
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": False}
_LLAMA |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "eos_token_id": 1}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's, and the batch that is decoded."""

    name: str
    least_bytes: int  # of free memory
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    batch: int = 64
    context: int = 512
    steps: int = 30

    @property
    def config(self) -> dict[str, Any]:
        return _LLAMA | {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
        }


SHAPES = (
    Shape("Llama-3-8B", 40 << 30, 128_256, 4096, 14_336, 32, 32, 8),
    Shape("Llama-3.2-1B", 8 << 30, 128_256, 2048, 8192, 16, 32, 8),
    Shape("SmolLM2-135M", 0, 49_152, 576, 1536, 30, 9, 3),
)
REHEARSAL = Shape("tiny", 0, 48, 32, 48, 1, 2, 1, batch=2, context=3, steps=1)


class RandomSource:
    """A checkpoint of random numbers, made where they are wanted."""

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        self._shapes = config.tensors()
        self._device = device

    def names(self) -> set[str]:
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def is_float32(self, name: str) -> bool:
        return False

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=self._device)
        return torch.randn(shape, dtype=torch.bfloat16, device=self._device) / shape[1] ** 0.5

    def coded(self, name: str) -> CodedWeight | None:
        return None


def decoding(device: torch.device, shape: Shape, form: str) -> Iterator[dict[str, Any]]:
    """A line for each number of distinct adapters, then one for the largest without captured steps."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape.config))
        config = DecoderConfig.from_path(Path(folder))
    weights = build_weights(RandomSource(config, device), config, "bfloat16", form, device)
    pages_each = -(-shape.context // 16)
    limits = EngineLimits(kv_tokens=16 * pages_each * shape.batch, max_running=shape.batch)
    distinct = [min(count, shape.batch) for count in DISTINCT]
    bandwidth = copy_bytes_s(device)
    with kernels_on(device), torch.inference_mode():
        runner = cuda_runner(config, weights, limits, device)
        for cache in (*runner._cache.keys, *runner._cache.values):
            cache.zero_()
        adapter_bytes = [put_adapter(runner, config, slot, device) for slot in range(max(distinct))]
        base_bytes = matrix_bytes(weights, runner) + kv_bytes(runner, shape)
        for count in dict.fromkeys(distinct):
            chunks = batch_of(shape, pages_each, count)
            step_s = median_s(lambda chunks=chunks: runner.run(chunks), shape.steps, device)
            roofline_s = (base_bytes + sum(adapter_bytes[:count])) / bandwidth
            yield line(shape, form, count, step_s, roofline_s, bandwidth, captured=runner._graphs is not None)
        runner._graphs = None
        step_s = median_s(lambda: runner.run(chunks), shape.steps, device)
        yield line(shape, form, count, step_s, roofline_s, bandwidth, captured=False)


def line(
    shape: Shape, form: str, adapters: int, step_s: float, roofline_s: float, bandwidth: float, *, captured: bool
) -> dict[str, Any]:
    return {
        "model": shape.name,
        "weights": form,
        "batch": shape.batch,
        "context": shape.context,
        "rank": RANK,
        "adapters": adapters,
        "captured": captured,
        "step_ms": round(1e3 * step_s, 4),
        "roofline_ms": round(1e3 * roofline_s, 4),
        "of_roofline": round(roofline_s / step_s, 4),
        "output_tok_s": round(shape.batch / step_s, 1),
        "copy_gb_s": round(bandwidth / 1e9, 1),
    }


def put_adapter(runner: Any, config: DecoderConfig, slot: int, device: torch.device) -> int:
    """Of RANK on every linear layer but the head; its bytes."""
    changes = {}
    for module, size in config.layout().items():
        if ".layers." in module:
            a = torch.randn(RANK, size.in_features, dtype=torch.bfloat16, device=device) / size.in_features**0.5
            changes[module] = LoraFactors(a, a.new_zeros(size.out_features, RANK).normal_(0, 0.01), 1.0)
    runner.factors.put(slot, changes)
    return sum(change.nbytes for change in changes.values())


def batch_of(shape: Shape, pages_each: int, distinct: int) -> list[Chunk]:
    """Sequence i decodes its last token with adapter i mod `distinct`."""
    sampling, chunks = Sampling(max_tokens=1, temperature=0.0), []
    for i in range(shape.batch):
        adapter = ResidentAdapter("", i % distinct, RANK, 0, b"") if distinct else None
        sequence = Sequence("", [1] * shape.context, shape.context - 1, sampling)
        sequence.adapters = () if adapter is None else ((adapter, 1.0),)
        sequence.pages = list(range(i * pages_each, (i + 1) * pages_each))
        chunks.append(Chunk(sequence, shape.context - 1, 1))
    return chunks


def matrix_bytes(weights: DecoderWeights, runner: Any) -> int:
    """What a step reads of the matrices, as the runner keeps them."""
    kept = runner._model._weights
    each = [one.weight for layer in kept.layers for one in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return sum(map(weight_bytes, [*each, kept.head.weight]))


def weight_bytes(weight: Weight) -> int:
    match weight:
        case Int8Weight():
            return weight.codes.nbytes + weight.scale.nbytes
        case CodedWeight() | Int4Weight():
            return weight.codes.nbytes + weight.scales.nbytes + (0 if weight.minima is None else weight.minima.nbytes)
    return weight.nbytes


def kv_bytes(runner: Any, shape: Shape) -> int:
    per_token = sum(cache[0, 0].nbytes for cache in (*runner._cache.keys, *runner._cache.values))
    return per_token * shape.batch * shape.context


def copy_bytes_s(device: torch.device) -> float:
    """Bytes read and written a second by a copy of 1 GiB (of 16 MiB on a processor)."""
    source = torch.ones((1 << 30) if device.type == "cuda" else (1 << 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_s(lambda: target.copy_(source), 10, device)


def median_s(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of single calls after two that do not count."""
    taken = []
    for number in range(repeats + 2):
        synchronise(device)
        started_s = time.perf_counter()
        step()
        synchronise(device)
        if number >= 2 or repeats == 1:
            taken.append(time.perf_counter() - started_s)
        if repeats == 1:
            break
    return statistics.median(taken)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitting(device: torch.device) -> Shape:
    """The largest shape that the device has room for."""
    if device.type != "cuda":
        return REHEARSAL
    free, _ = torch.cuda.mem_get_info(device)
    return next(shape for shape in SHAPES if free >= shape.least_bytes)
