"""Adapters that PEFT begins otherwise than with B = 0, from real files: over the base as it was, they answer as the
model that was trained, or they are refused by the name of what changed the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor

from openlora.node.engine.engine import Engine, EngineLimits, ScoreRequest
from openlora.node.engine.messages import AdapterLoaded, AdapterRefused, AdapterUse, LoadAdapter
from tests.node.engine.test_parity import tiny_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own use
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # of settings that it passes over
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

TOLERANCE = 1e-4
TEXT = tuple(range(3, 40))
TARGETS = ["q_proj", "v_proj", "down_proj"]


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, 200, (4, 24), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def prepare_corda(model: Any, config: LoraConfig) -> None:
    preprocess_corda(model, config, run_model=lambda: [model(text.unsqueeze(0)) for text in tokens()["input_ids"]])


def prepare_loraga(model: Any, config: LoraConfig) -> None:
    preprocess_loraga(model, config, train_step=lambda: model(**tokens()).loss.backward())


def nothing(model: Any, config: LoraConfig) -> None:
    """For what needs the base's weights alone."""


MUTATING: dict[str, tuple[dict[str, Any], Callable[[Any, LoraConfig], None]]] = {
    "pissa": ({"use_rslora": True}, nothing),
    "pissa_niter_4": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, nothing),
    "olora": ({}, nothing),
    "corda": ({"corda_config": CordaConfig(corda_method="kpm")}, prepare_corda),
    "lora_ga": ({"lora_ga_config": LoraGAConfig()}, prepare_loraga),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tiny_models()["llama3"].save_pretrained(path)
    return path


def open_base(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def train(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn_like(parameter))


def answer_of(model: Any) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(torch.tensor([TEXT])).logits[0].log_softmax(dim=-1)
    return answer


def loaded(base: Path, adapter: Path) -> tuple[Engine, AdapterLoaded | AdapterRefused]:
    engine = Engine.load(base, dtype="float32", limits=EngineLimits(kv_tokens=4096, max_batch_tokens=512))
    (answer,) = engine.handle(LoadAdapter(key="k", path=str(adapter)))
    assert isinstance(answer, AdapterLoaded | AdapterRefused)
    return engine, answer


def assert_answers(base: Path, adapter: Path, expected: Tensor) -> None:
    engine, answer = loaded(base, adapter)
    assert isinstance(answer, AdapterLoaded), answer
    (found,) = engine.score([ScoreRequest(TEXT, (AdapterUse("k"),))])
    assert float((found - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", MUTATING)
def test_what_changed_the_base_is_refused_until_it_is_converted(base: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    settings, prepare = MUTATING[name]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=name, **settings
    )
    model = open_base(base)
    prepare(model, config)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "initial")
    train(adapted)
    expected = answer_of(adapted)
    assert float((expected - answer_of(open_base(base))).abs().max()) > 100 * TOLERANCE
    adapted.save_pretrained(tmp_path / "as-trained")
    _, answer = loaded(base, tmp_path / "as-trained")
    assert isinstance(answer, AdapterRefused)
    assert f"init_lora_weights = '{name}' is not served" in answer.message
    assert "path_initial_model_for_weight_conversion" in answer.message
    adapted.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert_answers(base, tmp_path / "converted", expected)


@pytest.mark.parametrize(("name", "rank"), [("gaussian", 4), ("orthogonal", 4), ("mica", 4), (True, 3)])
def test_what_left_the_base_alone_answers_as_trained(base: Path, tmp_path: Path, name: Any, rank: int) -> None:
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=TARGETS, init_lora_weights=name)
    adapted = get_peft_model(open_base(base), config)
    train(adapted)
    adapted.save_pretrained(tmp_path)
    assert_answers(base, tmp_path, answer_of(adapted))


def test_evas_redistributed_ranks_answer_as_trained(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=TARGETS,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0),
    )
    adapted = get_peft_model(open_base(base), config)
    initialize_lora_eva_weights(adapted, [tokens()] * 8, show_progress_bar=False)
    assert len(set(adapted.peft_config["default"].rank_pattern.values())) > 1
    train(adapted)
    adapted.save_pretrained(tmp_path)
    assert_answers(base, tmp_path, answer_of(adapted))
