"""The engine against transformers and peft, in float32.

Teacher-forced: sixteen requests over six adapters, two ensembles and the base equal, in one batch, each request alone
and transformers with peft, the log-probabilities of the thousand likeliest tokens within 1e-4 at every position; greedy
tokens are equal wherever the oracle's two best are further apart than that. Beyond the thousandth token, and on
nonsense, float32 itself is no better: transformers differs from its own float64 by up to 3e-4 there.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from openlora.node.engine.engine import Engine, EngineLimits, ScoreRequest
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, LoadAdapter, Sampling, Submit
from tests.node.engine.test_gguf_file import gguf_name, pairs_side_by_side

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own use
]

TOLERANCE = 1e-4
LIMITS = EngineLimits(kv_tokens=4096, max_batch_tokens=512)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY_LAYER = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "every": {"r": 8, "lora_alpha": 16, "target_modules": EVERY_LAYER},
    "wide": {"r": 32, "lora_alpha": 16, "target_modules": EVERY_LAYER},
    "mixing": {"r": 16, "lora_alpha": 8, "target_modules": ATTENTION},
    "stabilised": {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "patterned": {
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 3, "down_proj": 12},
        "alpha_pattern": {"down_proj": 6},
        "target_modules": EVERY_LAYER,
    },
    "gated": {"r": 1, "lora_alpha": 2, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
}
RECIPES: list[tuple[AdapterUse, ...]] = [
    (),
    *((AdapterUse(key),) for key in ADAPTERS),
    (AdapterUse("every", 0.5), AdapterUse("mixing", -0.75)),
    (AdapterUse("patterned", 0.25), AdapterUse("wide", 0.5), AdapterUse("stabilised", 1.25)),
]
ENGLISH = (
    "A lighthouse is a tower built to guide ships at night. Its lamp turns slowly, and sailors count the seconds "
    "between two flashes to know which coast lies before them. Before electricity, keepers burned oil and trimmed the "
    "wicks every few hours; a keeper who slept could cost a hundred lives. Today most lamps are automatic."
)
TINY: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS = [
    *("smollm2", "llama3", "biased-llama", "stretched-llama", "yarn-llama", "mistral", "mistral-without-window"),
    *("qwen2", "tied-qwen2", "qwen3", "biased-qwen3", "gemma", "gemma2"),
    *("falcon-7b", "falcon-40b", "falcon-11b", "falcon-in-sequence"),
]
FALCON_NAMES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "query_key_value"),
    "o_proj": "dense",
    **dict.fromkeys(("gate_proj", "up_proj"), "dense_h_to_4h"),
    "down_proj": "dense_4h_to_h",
}


def tiny_models() -> dict[str, transformers.PreTrainedModel]:
    llama, mistral = transformers.LlamaConfig, transformers.MistralConfig
    qwen2, qwen3 = transformers.Qwen2Config, transformers.Qwen3Config
    gemma, gemma2, falcon = transformers.GemmaConfig, transformers.Gemma2Config, transformers.FalconConfig
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}
    new_falcon = {"new_decoder_architecture": True, "num_kv_heads": 2}
    some_windows = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
    configs = {
        "llama3": llama(**TINY, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False, head_dim=32),
        "biased-llama": llama(**TINY, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "stretched-llama": llama(**TINY, rope_parameters=LINEAR_ROPE),
        "yarn-llama": llama(**TINY, rope_parameters=YARN_ROPE),
        "mistral": mistral(**TINY, sliding_window=12, head_dim=24),
        "mistral-without-window": mistral(**TINY, sliding_window=None),
        "qwen2": qwen2(**TINY, tie_word_embeddings=False),
        "tied-qwen2": qwen2(**TINY, tie_word_embeddings=True, **some_windows),
        "qwen3": qwen3(**TINY, head_dim=32, tie_word_embeddings=True),
        "biased-qwen3": qwen3(**TINY, head_dim=8, attention_bias=True, **some_windows),
        "gemma": gemma(**TINY, head_dim=32),
        "gemma2": gemma2(**TINY, head_dim=32, query_pre_attn_scalar=20, sliding_window=12, **caps),
        "falcon-7b": falcon(**TINY),
        "falcon-40b": falcon(**TINY, bias=True, **new_falcon),
        "falcon-11b": falcon(**TINY, num_ln_in_parallel_attn=1, tie_word_embeddings=False, **new_falcon),
        "falcon-in-sequence": falcon(**TINY, bias=True, parallel_attn=False, multi_query=False),
    }
    torch.manual_seed(0)
    models = {name: transformers.AutoModelForCausalLM.from_config(config) for name, config in configs.items()}
    for model in models.values():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
            elif "norm" in name or "ln_" in name:
                parameter.data += 0.2 * torch.randn_like(parameter)  # Gemma's are zero where others' are one
    return models


def with_names(settings: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """An adapter's settings for a family that calls its modules otherwise."""
    patterns = {key: {names[m]: n for m, n in settings[key].items()} for key in settings if key.endswith("_pattern")}
    return settings | patterns | {"target_modules": sorted({names[m] for m in settings["target_modules"]})}


@dataclass
class Case:
    """A checkpoint, its adapters in directories named by their keys, and both opened in transformers and peft."""

    model: Path
    adapters: Path
    oracle: PeftModel
    text: Sequence[int]  # tokens to take prompts from

    def engine(self, limits: EngineLimits = LIMITS) -> Engine:
        engine = Engine.load(self.model, dtype="float32", limits=limits)
        for key in ADAPTERS:
            (answer,) = engine.handle(LoadAdapter(key=key, path=str(self.adapters / key)))
            assert isinstance(answer, AdapterLoaded), answer
        return engine

    def requests(self, count: int = 16) -> list[ScoreRequest]:
        """The text's first 1 to 60 tokens, the recipes in turn."""
        return [ScoreRequest(tuple(self.text[: 1 + 17 * i % 60]), RECIPES[i % len(RECIPES)]) for i in range(count)]

    def expected(self, request: ScoreRequest) -> Tensor:
        """Log-probabilities [tokens, vocabulary] by transformers and peft."""
        with recipe(self.oracle, request.adapters), torch.no_grad():
            return self.oracle(torch.tensor([request.tokens])).logits[0].float().log_softmax(dim=-1)


@contextmanager
def recipe(oracle: PeftModel, uses: Sequence[AdapterUse]) -> Iterator[None]:
    """peft with exactly these adapters active, each one's scaling times its weight."""
    if not uses:
        with oracle.disable_adapter():
            yield
        return
    layers = [module for module in oracle.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    oracle.base_model.set_adapter([use.key for use in uses])
    for layer in layers:
        for use in uses:
            if use.key in layer.scaling:
                layer.scaling[use.key] *= use.weight
    yield
    for layer, scaling in zip(layers, before, strict=True):
        layer.scaling.update(scaling)


def open_case(model_dir: Path, root: Path, text: Sequence[int]) -> Case:
    attention = {"attn_implementation": "eager"}  # the only one that caps Gemma 2's scores
    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, **attention).eval()
    torch.manual_seed(1)
    oracle: Any = None
    for key, settings in ADAPTERS.items():
        settings = with_names(settings, FALCON_NAMES) if base.config.model_type == "falcon" else settings
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        if oracle is None:
            oracle = get_peft_model(base, config, adapter_name=key)
        else:
            oracle.add_adapter(key, config)
    for name, parameter in oracle.named_parameters():
        if "lora_B" in name:  # peft's random ones outweigh the model, whose own rounding then exceeds the tolerance
            parameter.data.mul_(0.2)
    oracle.save_pretrained(root)
    return Case(model_dir, root, oracle.eval(), text)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "smollm2":
        text = transformers.AutoTokenizer.from_pretrained(model_dir)(ENGLISH)["input_ids"]
        return open_case(model_dir, root / "adapters", text)
    tiny_models()[request.param].save_pretrained(root / "model")
    text = random.Random(1).choices(range(TINY["vocab_size"]), k=70)
    return open_case(root / "model", root / "adapters", text)


def assert_within(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    likely = expected.topk(min(1000, expected.shape[-1]), dim=-1).indices
    assert float((found - expected).gather(1, likely).abs().max()) <= TOLERANCE
    best = expected.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > 2 * TOLERANCE
    assert torch.equal(found.argmax(dim=-1)[clear], best.indices[:, 0][clear])


def test_a_mixed_batch_equals_each_request_alone_and_transformers_with_peft(case: Case) -> None:
    engine, requests = case.engine(), case.requests()
    together = engine.score(requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = engine.score([request])
        assert_within(found, alone)
        assert_within(found, case.expected(request))


def test_the_recipes_differ_from_each_other_by_far_more_than_the_tolerance(case: Case) -> None:
    tokens = case.requests()[2].tokens
    found = case.engine().score([ScoreRequest(tokens, uses) for uses in RECIPES])
    for i, one in enumerate(found):
        for other in found[:i]:
            assert float((one - other).abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize("max_batch_tokens", [7, 64])
def test_chunks_of_any_size(case: Case, max_batch_tokens: int) -> None:
    limits = EngineLimits(kv_tokens=4096, max_batch_tokens=max_batch_tokens, max_running=7)
    requests = case.requests(9)
    for request, found in zip(requests, case.engine(limits).score(requests), strict=True):
        assert_within(found, case.expected(request))


def test_greedy_decoding_follows_the_oracle(case: Case) -> None:
    """Every token that the engine decodes, in one batch, is the oracle's best, or within the tolerance of it."""
    engine, requests = case.engine(), case.requests(9)
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
    for i, request in enumerate(requests):
        submit = Submit(request_id=str(i), prompt=request.tokens, sampling=sampling, adapters=request.adapters)
        assert engine.handle(submit) == []
    decoded: list[list[tuple[int, float]]] = [[] for _ in requests]
    while (step := engine.step()) is not None:
        for token in step.tokens:
            assert token.logprob is not None
            decoded[int(token.request_id)].append((token.token_id, token.logprob))
    for request, output in zip(requests, decoded, strict=True):
        whole = ScoreRequest((*request.tokens, *(token for token, _ in output)), request.adapters)
        rows = case.expected(whole)[len(request.tokens) - 1 : -1]
        for row, (token, logprob) in zip(rows, output, strict=True):
            assert abs(float(row[token]) - logprob) <= TOLERANCE
            assert float(row.max() - row[token]) <= 2 * TOLERANCE


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gguf_equals_the_same_file_in_transformers(name: str, kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    configs = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    model = transformers.AutoModelForCausalLM.from_config(configs[name](**TINY, tie_word_embeddings=False))
    config, family = model.config, model.config.model_type
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    for tensor_name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        permuted = heads.get(tensor_name.split(".")[-2]) if family == "llama" else None
        values = (tensor if permuted is None else pairs_side_by_side(tensor, permuted)).numpy()
        if values.ndim == 1:
            writer.add_tensor(gguf_name(tensor_name), values)
        else:
            writer.add_tensor(gguf_name(tensor_name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    tokens = tuple(random.Random(2).choices(range(config.vocab_size), k=50))
    with torch.no_grad():
        expected = oracle.eval()(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
    (found,) = Engine.load(tmp_path / "model.gguf", dtype="float32", limits=LIMITS).score([ScoreRequest(tokens)])
    assert_within(found, expected)
