"""Our engine on a device against transformers and peft on the processor: the same random model, adapters and ensembles.

Teacher-forced, log-probabilities must agree; then what the engine decodes, through captured steps, must be the oracle's
best token at every position, or within the tolerance of it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.gpu_engines import cuda_runner, kernels_on
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.engine import Engine, ScoreRequest
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, LoadAdapter, Sampling, Submit
from openlora.node.engine.models.config import DecoderConfig

TOLERANCE = 1e-3
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANKS = {"small": 4, "odd": 3, "large": 32}
RECIPES: tuple[tuple[AdapterUse, ...], ...] = (
    (),
    (AdapterUse("small"),),
    (AdapterUse("large"),),
    (AdapterUse("small", 0.5), AdapterUse("odd", -0.75)),
)


@dataclass(frozen=True, slots=True)
class Size:
    hidden: int
    layers: int
    vocabulary: int
    prompt: int
    output: int


DEVICE, REHEARSAL = Size(512, 4, 2_000, 48, 24), Size(32, 1, 48, 5, 2)


def parity(device: torch.device, size: Size) -> dict[str, Any]:
    """The largest differences, and whether they are within the tolerance."""
    with tempfile.TemporaryDirectory() as folder:
        base, adapters = Path(folder, "base"), Path(folder, "adapters")
        oracle = make_oracle(base, adapters, size)
        with kernels_on(device):
            engine = make_engine(base, adapters, device)
            scored = score_difference(engine, oracle, size)
            shortfall, logprob = decode_difference(engine, oracle, size)
    found = {
        "logprob_difference": scored,
        "decoded_logprob_difference": logprob,
        "decoded_shortfall": shortfall,
        "tolerance": TOLERANCE,
    }
    return {"passed": max(scored, logprob, shortfall / 2) <= TOLERANCE, **found}


def make_oracle(base: Path, adapters: Path, size: Size) -> Any:
    """A Llama with peft's adapters, both saved as files too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 16,
        num_key_value_heads=size.hidden // 32,
        head_dim=16 if size.hidden < 128 else 64,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(base)
    oracle: Any = None
    for name, rank in RANKS.items():
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS, init_lora_weights=False)
        settings.task_type = "CAUSAL_LM"
        if oracle is None:
            oracle = get_peft_model(model, settings, adapter_name=name)
        else:
            oracle.add_adapter(name, settings)
    for name, parameter in oracle.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(0.2)
    oracle.save_pretrained(adapters)
    return oracle.eval()


def make_engine(base: Path, adapters: Path, device: torch.device) -> Engine:
    config, limits = DecoderConfig.from_path(base), EngineLimits(kv_tokens=2048, max_running=8)
    weights = load_weights(base, config, "float32", device=device)
    engine = Engine(config, cuda_runner(config, weights, limits, device), limits, Checkpoint(base, config))
    for name in RANKS:
        (answer,) = engine.handle(LoadAdapter(key=name, path=str(adapters / name)))
        if not isinstance(answer, AdapterLoaded):
            raise RuntimeError(str(answer))
    return engine


def requests(size: Size) -> list[ScoreRequest]:
    rng = torch.Generator().manual_seed(1)
    return [
        ScoreRequest(tuple(torch.randint(size.vocabulary, (size.prompt + 3 * i,), generator=rng).tolist()), recipe)
        for i, recipe in enumerate(RECIPES)
    ]


def expected(oracle: Any, tokens: Sequence[int], uses: Sequence[AdapterUse]) -> Tensor:
    """Log-probabilities [tokens, vocabulary] under exactly these adapters, each one's scaling times its weight."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        if not uses:
            with oracle.disable_adapter():
                return oracle(ids).logits[0].log_softmax(dim=-1)  # type: ignore[no-any-return]
        layers = [module for module in oracle.modules() if isinstance(module, LoraLayer)]
        before = [dict(layer.scaling) for layer in layers]
        oracle.base_model.set_adapter([use.key for use in uses])
        for layer in layers:
            for use in uses:
                layer.scaling[use.key] *= use.weight
        found: Tensor = oracle(ids).logits[0].log_softmax(dim=-1)
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
        return found


def score_difference(engine: Engine, oracle: Any, size: Size) -> float:
    """The largest, over all requests in one batch."""
    asked = requests(size)
    differences = [
        float((found.cpu() - expected(oracle, request.tokens, request.adapters)).abs().max())
        for request, found in zip(asked, engine.score(asked), strict=True)
    ]
    return max(differences)


def decode_difference(engine: Engine, oracle: Any, size: Size) -> tuple[float, float]:
    """By how much a decoded token falls short of the oracle's best, and its log-probability's difference, at most."""
    asked = requests(size)
    sampling = Sampling(max_tokens=size.output, temperature=0.0, ignore_eos=True, logprobs=0)
    for i, request in enumerate(asked):
        engine.handle(Submit(request_id=str(i), prompt=request.tokens, sampling=sampling, adapters=request.adapters))
    decoded: list[list[tuple[int, float]]] = [[] for _ in asked]
    while (step := engine.step()) is not None:
        for token in step.tokens:
            decoded[int(token.request_id)].append((token.token_id, token.logprob or 0.0))
    shortfall = difference = 0.0
    for request, output in zip(asked, decoded, strict=True):
        whole = (*request.tokens, *(token for token, _ in output))
        rows = expected(oracle, whole, request.adapters)[len(request.tokens) - 1 : -1]
        for row, (token, logprob) in zip(rows, output, strict=True):
            shortfall = max(shortfall, float(row.max() - row[token]))
            difference = max(difference, abs(float(row[token]) - logprob))
    return shortfall, difference
