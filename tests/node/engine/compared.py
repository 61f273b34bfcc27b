"""Runners of one small model that are compared, adapters and requests for them, and what they compute."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from openlora.kernels.ops import BACKENDS, Backend, Ops
from openlora.kernels.types import Change, Difference, LoraFactors
from openlora.node.adapters.modules import EmbeddingShape, LinearShape, NormShape, bias_of
from openlora.node.engine.adapter_pool import ResidentAdapter
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, DecoderWeights
from openlora.node.engine.runner import OpsRunner, Runner
from openlora.node.engine.sequence import Chunk
from openlora.node.engine.sequence import Sequence as Request
from tests.node.engine.units import with_unit

INSTRUCTIONS = ("plain", "avx2", "avx512", "avx512-bf16", "amx")
SLOTS = 8
LIMITS = EngineLimits(kv_tokens=16 * 1024)
MODEL = {  # a head's width is a vector register's; the others leave tiles, blocks and registers partly filled
    "vocab_size": 211,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "mlp_bias": True,
}
FAMILIES = {  # the window begins and ends inside pages
    "mistral": MODEL | {"model_type": "mistral", "sliding_window": 21, "attention_bias": False, "mlp_bias": False},
    "qwen3": MODEL | {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "gemma": MODEL | {"model_type": "gemma", "attention_bias": False, "tie_word_embeddings": True, "head_dim": 64},
    "gemma2": MODEL
    | {"model_type": "gemma2", "attention_bias": False, "sliding_window": 21, "query_pre_attn_scalar": 20}
    | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0},
}
ENGLISH = (
    "A lighthouse is a tower built to guide ships at night. Its lamp turns slowly, and sailors count the seconds "
    "between two flashes to know which coast lies before them. Before electricity, keepers burned oil and trimmed the "
    "wicks every few hours; a keeper who slept could cost a hundred lives. Today most lamps are automatic."
)


def compiled(
    model: Path,
    kernels: Path,
    instructions: str = "",
    threads: int = 2,
    form: str = "auto",
    weights: DecoderWeights | None = None,
) -> CompiledRunner:
    """Of the model's weights in that form, or of `weights`."""
    config = DecoderConfig.from_path(model)
    torch.set_num_threads(threads)
    try:
        weights = weights or load_weights(model, config, "bfloat16", form)
        with with_unit(instructions):
            return CompiledRunner(config, weights, LIMITS, kernels, instructions)
    finally:
        torch.set_num_threads(1)


def reference(model: Path, dtype: torch.dtype = torch.float32, backend: Backend = BACKENDS["reference"]) -> OpsRunner:
    """The weights are those that bfloat16 holds, whatever is computed in."""
    config = DecoderConfig.from_path(model)
    weights = load_weights(model, config, "bfloat16")
    if dtype == torch.float32:
        weights = widened(weights)
    ops = Ops(backend)
    return OpsRunner(Decoder(config, weights, ops), ops, LIMITS.pages, LIMITS.page_tokens)


def widened(value: object) -> object:
    """The same dataclasses with every tensor in float32."""
    match value:
        case Tensor():
            return value.float()
        case tuple() if not (value and isinstance(value[0], str)):
            return tuple(widened(one) for one in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: widened(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def load_adapters(runners: Sequence[Runner], model: Path, rank: int | str) -> None:
    """SLOTS adapters, some of which leave some matrices alone; numbers that bfloat16 holds."""
    rng = torch.Generator().manual_seed(1)
    ranks = [1, 3, 8, 16, 17, 64, 33, 5] if rank == "mixed" else [int(rank)] * SLOTS
    layout = DecoderConfig.from_path(model).layout()
    for slot, r in enumerate(ranks):
        factors = {}
        for index, (module, shape) in enumerate(layout.items()):
            a = torch.randn(r, shape.in_features, generator=rng) / shape.in_features**0.5
            b = torch.randn(shape.out_features, r, generator=rng) / r**0.5
            if (index + slot) % 5:
                factors[module] = LoraFactors(a.bfloat16(), b.bfloat16(), 0.5 / (1 + slot % 3))
        for runner in runners:
            cast = {m: LoraFactors(f.a.to(runner.dtype), f.b.to(runner.dtype), f.scale) for m, f in factors.items()}
            runner.factors.put(slot, cast)


def load_kinds(runners: Sequence[Runner], model: Path) -> None:
    """SLOTS adapters that change weights in every way: slot n what differs from others by its remainders."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).bfloat16().float()

    for slot in range(SLOTS):
        changes: dict[str, Change] = {}
        for index, (module, shape) in enumerate(DecoderConfig.from_path(model).modules().items()):
            if isinstance(shape, NormShape):
                if slot % 2:
                    changes[module] = Difference(normal(shape.features) / 8)
            elif (index + slot) % 4 == 0 and slot % 3:
                changes[module] = Difference((normal(*shape.weight) / shape.weight[1] ** 0.5).bfloat16().float() / 4)
            elif (index + slot) % 4 < 3:
                a, b = normal(1 + 2 * slot, shape.in_features), normal(shape.out_features, 1 + 2 * slot) / 4
                a = a if isinstance(shape, EmbeddingShape) else (a / shape.in_features**0.5).bfloat16().float()
                changes[module] = LoraFactors(a, b, 0.25, normal(shape.out_features) / 4 if slot % 4 else None)
            if isinstance(shape, LinearShape) and (index + slot) % 3 == 0 and slot % 3:
                changes[bias_of(module)] = Difference(normal(shape.out_features) / 4)
        for runner in runners:
            runner.factors.put(slot, {module: cast(change, runner.dtype) for module, change in changes.items()})


def cast(change: Change, dtype: torch.dtype) -> Change:
    if isinstance(change, Difference):
        return change if change.weight.ndim == 1 else Difference(change.weight.to(dtype))
    return LoraFactors(change.a.to(dtype), change.b.to(dtype), change.scale, change.stretch)


def request(tokens: Sequence[int], recipe: Sequence[tuple[int, float]], sampling: Sampling | None = None) -> Request:
    adapters = tuple((ResidentAdapter(str(slot), slot, 0, 0, b""), weight) for slot, weight in recipe)
    return Request("r", list(tokens), len(tokens), sampling, adapters=adapters)


def recipes_of(popularity: str, rows: int) -> list[list[tuple[int, float]]]:
    """One adapter a request, of every fifth none and of every seventh two."""
    rng = random.Random(rows)
    slots = {
        "distinct": [row % SLOTS for row in range(rows)],
        "identical": [3] * rows,
        "uniform": [rng.randrange(SLOTS) for _ in range(rows)],
        "skewed": [0 if rng.random() < 0.9 else rng.randrange(SLOTS) for _ in range(rows)],
    }[popularity]
    recipes = [[(slot, 0.5)] if row % 5 else [] for row, slot in enumerate(slots)]
    return [[*recipe, (6, -0.25)] if row % 7 == 6 else recipe for row, recipe in enumerate(recipes)]


def some_requests(rows: int, popularity: str) -> list[Request]:
    """Contexts of 2 to 40 tokens."""
    rng = random.Random(rows)
    return [
        request([rng.randrange(211) for _ in range(2 + 17 * i % 39)], recipe)
        for i, recipe in enumerate(recipes_of(popularity, rows))
    ]


def give_pages(requests: Sequence[Request]) -> None:
    """Pages enough for 64 tokens each, in no order."""
    pages = list(range(LIMITS.pages))
    random.Random(0).shuffle(pages)
    for one in requests:
        one.pages = [pages.pop() for _ in range(4)]


def logits_of(runner: Runner, requests: Sequence[Request], decoded: int = 2) -> Tensor:
    """The last logits of each request: all tokens but `decoded` in one pass, then decode rows beside the prompts that
    are too short to have any."""
    give_pages(requests)
    whole = [Chunk(one, 0, max(1, len(one.tokens) - (decoded if i % 3 else 0))) for i, one in enumerate(requests)]
    last: dict[int, Tensor] = {}
    pending = dict(enumerate(whole))
    while pending:
        outputs = runner.run(list(pending.values()))
        assert outputs.logits is not None
        for (i, chunk), rows in zip(
            list(pending.items()), outputs.logits.split([chunk.length for chunk in pending.values()]), strict=True
        ):
            last[i] = rows[-1]
            if chunk.end == len(chunk.sequence.tokens):
                del pending[i]
            else:
                pending[i] = Chunk(chunk.sequence, chunk.end, 1)
    return torch.stack([last[i] for i in range(len(requests))])


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence."""
    p, q = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def assert_as_near_as_bfloat16(found: Tensor, exact: Tensor, rounded: Tensor) -> None:
    assert divergence(found, exact) <= max(2e-4, divergence(rounded, exact))
    assert float((found - exact).abs().max()) <= max(0.05, 1.5 * float((rounded - exact).abs().max()))
