"""Every kind of adapter against transformers and peft, in float32, log-probabilities within 1e-4.

Alone, the oracle is peft with the adapter as it was saved. peft defines no weights for DoRA and whole modules, and lets
one such adapter act on top of another; here a recipe is the sum of the differences that its adapters make, and the
oracle is transformers with exactly these weights: W + Σ wᵢ·(peft's merged Wᵢ − W).
"""

import copy
import functools
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, MontecloraConfig, PeftModel, VeloraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from openlora.node.adapters.format import read_adapter
from openlora.node.engine import changes
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.engine import Engine, EngineLimits, ScoreRequest
from openlora.node.engine.messages import AdapterLoaded, AdapterRefused, AdapterUse, LoadAdapter
from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.test_parity import ATTENTION, EVERY_LAYER, TINY, tiny_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own use
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # of tied weights, of saved embeddings
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning:peft"),
]

TOLERANCE = 1e-4
LIMITS = EngineLimits(kv_tokens=4096, max_batch_tokens=512)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ATTENTION},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head": {"target_modules": ["lm_head", "down_proj"]},
    "ends": {
        "target_modules": ["embed_tokens", "lm_head"],
        "use_rslora": True,
        "rank_pattern": {"embed_tokens": 3, "^lm_head": 7},
        "alpha_pattern": {"lm_head": 5},
    },
    "dora": {"target_modules": EVERY_LAYER, "use_dora": True},
    "dora-ends": {"target_modules": [*EVERY_LAYER, "embed_tokens", "lm_head"], "use_dora": True, "use_rslora": True},
    "whole-ends": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "whole-layers": {"target_modules": ["q_proj"], "modules_to_save": ["model.norm", "down_proj"], "use_dora": True},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": list(range(1, TINY["vocab_size"], 3))[:200]},
    "tokens-by-name": {"target_modules": ["down_proj"], "trainable_token_indices": {"embed_tokens": [7, 0, 30]}},
    "tokens-of-the-head": {"target_modules": ["down_proj"], "trainable_token_indices": {"lm_head": [5, 0]}},
    "tokens-apart": {
        "target_modules": ["down_proj"],
        "trainable_token_indices": {"embed_tokens": [7, 0], "lm_head": [0, 9, 30]},
    },
    "tied-ends": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True, "lora_alpha": 1},
    "tied-whole-ends": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "second-layer": {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "some-layers": {"target_modules": ["model.layers.0.mlp.up_proj", "o_proj"], "layers_to_transform": [1, 2]},
    "pattern": {  # as Unsloth writes it
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
        r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))",
        "exclude_modules": r".*\.1\.self_attn\.[qk]_proj",
    },
    "excluding-pattern": {"target_modules": EVERY_LAYER, "exclude_modules": r".*\.[02]\.mlp\..*", "use_dora": True},
    "meaning-nothing": {  # here, where o_proj has no bias
        "target_modules": ["o_proj", "query", "value"],
        "modules_to_save": ["score"],
        "rank_pattern": {"query": 9},
        "bias": "lora_only",
        "fan_in_fan_out": True,
    },
    "biased": {
        "target_modules": EVERY_LAYER,
        "lora_bias": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"^model.layers.1.mlp.down_proj": 3},
    },
    "biased-head": {"target_modules": ["lm_head", "v_proj"], "lora_bias": True, "layers_to_transform": [0, 2]},
    "trained-biases": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only", "lora_bias": True},
    "all-biases": {"target_modules": ["v_proj", "up_proj"], "bias": "all", "use_dora": True},
    "whole-biased-layers": {"target_modules": ["v_proj", "o_proj"], "modules_to_save": ["k_proj"]},
    "velora": {"target_modules": ATTENTION, "velora_config": VeloraConfig(num_groups=4)},
    "monteclora": {
        "target_modules": ["down_proj"],
        "monteclora_config": MontecloraConfig(num_samples=2, buffer_size=1),
        "r": 20,
    },
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.1.mlp.up_proj"]},
}
ENSEMBLES: list[tuple[AdapterUse, ...]] = [
    (AdapterUse("embedding", 0.5), AdapterUse("head", -0.75)),
    (AdapterUse("dora", 0.5), AdapterUse("dora-ends", 0.75)),
    (AdapterUse("whole-ends", 0.5), AdapterUse("plain", 1.5)),
    (AdapterUse("all-biases", -0.5), AdapterUse("whole-biased-layers", 0.75)),
    (AdapterUse("whole-layers", 0.75), AdapterUse("whole-ends", -0.25), AdapterUse("dora-ends", 0.5)),
]


@dataclass
class Case:
    """A base model's directory, adapters in directories named by their keys, and each one's merged weights."""

    model: Path
    adapters: Path
    base: dict[str, Tensor]
    merged: dict[str, dict[str, Tensor]]
    text: Sequence[int]

    def expected(self, request: ScoreRequest) -> Tensor:
        if len(request.adapters) == 1 and request.adapters[0].weight == 1.0:
            model = open_adapter(open_base(self.model), self.adapters / request.adapters[0].key)
        else:
            model = untied(self.model)
            model.load_state_dict(
                {
                    name: weight + sum(use.weight * (self.merged[use.key][name] - weight) for use in request.adapters)
                    for name, weight in self.base.items()
                }
            )
        with torch.no_grad():
            return model(torch.tensor([request.tokens])).logits[0].log_softmax(dim=-1)


def open_base(model: Path) -> Any:
    return copy.deepcopy(opened(model))


@functools.cache
def opened(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def untied(model: Path) -> Any:
    """The same base with a head of its own, which an adapter of either can be merged into."""
    tied = open_base(model)
    config = transformers.AutoConfig.from_pretrained(model)
    config.tie_word_embeddings = False
    model_with_head = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model_with_head.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.lm_head.weight})
    return model_with_head


def open_adapter(base: Any, path: Path) -> Any:
    return PeftModel.from_pretrained(base, path).eval()


def make_adapter(model: Path, path: Path, settings: dict[str, Any], *, save_embedding_layers: Any = "auto") -> None:
    """As if trained: factors, magnitudes and whole weights all differ from where they began."""
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **({"r": 4, "lora_alpha": 8} | settings))
    adapted = get_peft_model(open_base(model), config)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            if "lora_magnitude" in name:
                parameter.data.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "modules_to_save" in name or "trainable_tokens" in name or name.endswith(".bias"):
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            elif "lora_B" in name or "lora_embedding_B" in name:
                parameter.data.mul_(0.2)
    adapted.save_pretrained(path, save_embedding_layers=save_embedding_layers)


@pytest.fixture(scope="module", params=["llama3", "tied-qwen2", "gemma2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The second one's head is tied, and its queries, keys and values have biases; the third scales its embedding, and
    adds one to the weights of its norms."""
    root = tmp_path_factory.mktemp(request.param)
    tiny_models()[request.param].save_pretrained(root / "model")
    torch.manual_seed(2)
    merged = {}
    for key, settings in KINDS.items():
        make_adapter(root / "model", root / key, settings)
        if any(key == use.key for recipe in ENSEMBLES for use in recipe):
            merged[key] = open_adapter(untied(root / "model"), root / key).merge_and_unload().state_dict()
    text = random.Random(1).choices(range(TINY["vocab_size"]), k=70)
    return Case(root / "model", root, untied(root / "model").state_dict(), merged, text)


def loaded(case: Case) -> Engine:
    engine = Engine.load(case.model, dtype="float32", limits=LIMITS)
    for key in KINDS:
        (answer,) = engine.handle(LoadAdapter(key=key, path=str(case.adapters / key)))
        assert isinstance(answer, AdapterLoaded), answer
    return engine


def requests(case: Case) -> list[ScoreRequest]:
    recipes: list[tuple[AdapterUse, ...]] = [(), *((AdapterUse(key),) for key in KINDS), *ENSEMBLES]
    return [ScoreRequest(tuple(case.text[: 12 + i]), recipe) for i, recipe in enumerate(recipes)]


def test_each_kind_alone_and_all_in_one_batch_equal_the_oracle(case: Case) -> None:
    engine = loaded(case)
    together = engine.score(requests(case))
    for request, found in zip(requests(case), together, strict=True):
        expected = case.expected(request)
        (alone,) = engine.score([request])
        assert float((alone - expected).abs().max()) <= TOLERANCE, request.adapters
        assert float((found - expected).abs().max()) <= TOLERANCE, request.adapters
    engine.check_integrity()


def test_biases_of_several_adapters_add_up_with_their_weights_as_in_peft(case: Case) -> None:
    """peft adds low-rank adapters up by itself, where it cannot merge them: most layers have no bias to add to."""
    uses = (AdapterUse("biased", 0.5), AdapterUse("plain", -1.0), AdapterUse("biased-head", 1.25))
    model = open_base(case.model)
    for i, use in enumerate(uses):
        path = case.adapters / use.key
        model = PeftModel.from_pretrained(model, path, use.key) if i == 0 else model
        if i:
            model.load_adapter(path, use.key)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(use.key, use.weight)
    model.base_model.set_adapter([use.key for use in uses])
    tokens = case.text[:30]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
    (found,) = loaded(case).score([ScoreRequest(tuple(tokens), uses)])
    assert float((found - expected).abs().max()) <= TOLERANCE


def test_the_recipes_differ_by_far_more_than_the_tolerance(case: Case) -> None:
    tokens = tuple(case.text[:20])
    found = loaded(case).score([ScoreRequest(tokens, request.adapters) for request in requests(case)])
    for i, one in enumerate(found):
        for other in found[:i]:
            assert float((one - other).abs().max()) > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_a_layer_that_a_pattern_matches_and_the_file_lacks_is_left_alone(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.adapters / "pattern", tmp_path / "part")
    file = tmp_path / "part" / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if ".layers.1." not in name}
    save_file(kept, file, {"format": "pt"})
    config = json.loads((file.parent / "adapter_config.json").read_text())
    (file.parent / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": True}))  # B begins as 0
    _, found, expected = loaded_alone(case, tmp_path, "part")
    assert float((found - expected).abs().max()) <= TOLERANCE


def loaded_alone(case: Case, adapters: Path, key: str) -> tuple[AdapterLoaded, Tensor, Tensor]:
    """The adapter in a folder of that name, what it is found to answer, and what is expected."""
    engine = Engine.load(case.model, dtype="float32", limits=LIMITS)
    (answer,) = engine.handle(LoadAdapter(key=key, path=str(adapters / key)))
    assert isinstance(answer, AdapterLoaded), answer
    request = ScoreRequest(tuple(case.text[:20]), (AdapterUse(key),))
    (found,) = engine.score([request])
    return answer, found, Case(case.model, adapters, case.base, case.merged, case.text).expected(request)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize(
    "key",
    [
        *("plain", "head", "dora-ends", "tied-ends", "whole-ends", "tied-whole-ends"),
        *("tokens", "tokens-of-the-head", "tokens-apart", "all-biases"),
    ],
)
def test_what_save_embedding_layers_adds_to_the_file_changes_nothing(case: Case, key: str, tmp_path: Path) -> None:
    settings = KINDS[key] | ({"modules_to_save": ["k_proj"]} if key == "all-biases" else {})
    for name, save in (("without", False), ("with", True)):
        torch.manual_seed(2)
        make_adapter(case.model, tmp_path / name, settings, save_embedding_layers=save)
    without, _, _ = loaded_alone(case, tmp_path, "without")
    answer, found, expected = loaded_alone(case, tmp_path, "with")
    assert float((found - expected).abs().max()) <= TOLERANCE
    assert (answer.rank, answer.bytes) == (without.rank, without.bytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_each_kind_takes_is_known_before_it_is_computed(case: Case, dtype: torch.dtype) -> None:
    config = DecoderConfig.from_path(case.model)
    base = Checkpoint(case.model, config)
    for key in KINDS:
        weights = read_adapter(case.adapters / key, config.modules())
        found = changes.changes(weights, base, dtype, torch.device("cpu"))
        assert sum(change.nbytes for change in found.values()) == changes.nbytes(weights, dtype), key


def test_a_copy_of_another_base_is_refused(case: Case, tmp_path: Path) -> None:
    """peft stores the base's embedding beside an embedding's adapter: it must be this base's."""
    base = open_base(case.model)
    base.get_input_embeddings().weight.data[3, 5] += 0.01
    base.save_pretrained(tmp_path / "other")
    make_adapter(tmp_path / "other", tmp_path / "adapter", KINDS["embedding"])
    engine = Engine.load(case.model, dtype="float32", limits=LIMITS)
    (answer,) = engine.handle(LoadAdapter(key="k", path=str(tmp_path / "adapter")))
    assert isinstance(answer, AdapterRefused)
    assert "model.embed_tokens.weight than this base model has" in answer.message


@pytest.mark.parametrize(
    ("base", "copied", "served", "taken"),
    [
        (torch.float32, torch.bfloat16, "float32", False),
        (torch.float32, torch.float16, "float32", False),
        (torch.float32, torch.bfloat16, "bfloat16", True),
        (torch.float32, torch.float16, "bfloat16", True),
        (torch.bfloat16, torch.bfloat16, "float32", True),
        (torch.bfloat16, torch.float16, "float32", True),  # which rounds the smallest number alone
        (torch.bfloat16, torch.float32, "float32", True),
    ],
)
def test_a_rounded_copy_is_taken_where_it_changes_nothing(
    base: torch.dtype, copied: torch.dtype, served: str, taken: bool, tmp_path: Path
) -> None:
    """peft computes with the copy, so that float32's results depend on what it was saved in."""
    model = tiny_models()["llama3"].to(base)
    model.get_input_embeddings().weight.data[3, 5] = 1.234e-6
    model.save_pretrained(tmp_path / "model")
    torch.manual_seed(2)
    make_adapter(tmp_path / "model", tmp_path / "adapter", KINDS["embedding"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    copies = {name: one.to(copied) if "base_layer" in name else one for name, one in load_file(file).items()}
    save_file(copies, file, {"format": "pt"})
    engine = Engine.load(tmp_path / "model", dtype=served, limits=LIMITS)
    (answer,) = engine.handle(LoadAdapter(key="adapter", path=str(tmp_path / "adapter")))
    if not taken:
        assert isinstance(answer, AdapterRefused)
        assert "model.embed_tokens.weight rounded to" in answer.message
        return
    assert isinstance(answer, AdapterLoaded), answer
    if served == "float32":
        request = ScoreRequest(tuple(range(30)), (AdapterUse("adapter"),))
        (found,) = engine.score([request])
        expected = Case(tmp_path / "model", tmp_path, {}, {}, ()).expected(request)
        assert float((found - expected).abs().max()) <= TOLERANCE
