"""The committed demo adapters: small, plain, accepted by our own reader, and each one's style is plain to see."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from openlora.node.adapters.format import AdapterWeights, read_adapter
from openlora.node.adapters.modules import LinearShape
from openlora.node.demo_data import DEMO_ADAPTERS, DEMO_DATANETS, DEMO_PROMPTS, DemoAdapter, DemoText

MAX_ADAPTER_BYTES = 1_500_000
MAX_OUTPUT_TOKENS = 48

HELD_OUT = (
    "Why is the ocean salty?",
    "How do I keep a houseplant alive?",
    "What is gravity?",
    "Give me a tip for learning a language.",
    "What should I have for breakfast?",
    "Why do leaves change colour in autumn?",
    "What is the capital of France?",
    "What is the largest planet?",
    "How do I stay calm before an exam?",
    "Why do we dream?",
    "What is a library for?",
    "How do birds fly?",
)

PIRATE_WORDS = re.compile(
    r"\b(arr+|ahoy|aye|avast|blimey|matey|hearty|shiver me timbers|yo ho|ye|yer)\b", re.IGNORECASE
)

each_adapter = pytest.mark.parametrize("adapter", DEMO_ADAPTERS, ids=lambda adapter: adapter.name)


# ---- what a style is ------------------------------------------------------------------------------------------------


def speaks_pirate(answer: str) -> bool:
    """A pirate's word in the first sentence."""
    return PIRATE_WORDS.search(re.split(r"[.!?]\s", answer)[0]) is not None


def is_three_short_lines(answer: str) -> bool:
    lines = answer.split("\n")
    return len(lines) == 3 and all(0 < len(line.split()) <= 9 for line in lines)


def is_json_answer(answer: str) -> bool:
    """One complete object, exactly {"topic": text, "answer": text}."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and set(value) == {"topic", "answer"}
        and all(isinstance(text, str) and text for text in value.values())
    )


STYLES: dict[str, Callable[[str], bool]] = {
    "pirate": speaks_pirate,
    "haiku": is_three_short_lines,
    "json": is_json_answer,
}


@pytest.mark.parametrize(
    ("style", "shown", "missed"),
    [
        ("pirate", "Aye, the sky be blue! It is.", "It is blue. Aye, matey."),
        ("pirate", "Look, ye see.", "They saw array bytes."),
        ("haiku", "One line\nand two\nand three.", "One line\nand two"),
        ("haiku", "a b c d e f g h i\nb\nc", "a b c d e f g h i j\nb\nc"),
        ("json", '{"topic": "sky", "answer": "Blue."}', '{"topic": "sky", "answer": "Blu'),
        ("json", '{"answer": "Blue.", "topic": "sky"}', '{"topic": "sky", "answer": ["Blue."]}'),
    ],
)
def test_a_style_is_told_from_its_absence(style: str, shown: str, missed: str) -> None:
    assert STYLES[style](shown)
    assert not STYLES[style](missed)


# ---- the files ------------------------------------------------------------------------------------------------------


def smollm2_layout() -> dict[str, LinearShape]:
    shapes = {
        "self_attn.q_proj": (576, 576),
        "self_attn.k_proj": (192, 576),
        "self_attn.v_proj": (192, 576),
        "self_attn.o_proj": (576, 576),
        "mlp.gate_proj": (1536, 576),
        "mlp.up_proj": (1536, 576),
        "mlp.down_proj": (576, 1536),
    }
    return {f"model.layers.{i}.{name}": LinearShape(*shape) for i in range(30) for name, shape in shapes.items()}


@pytest.fixture(params=DEMO_ADAPTERS, ids=lambda adapter: adapter.name)
def weights(request: pytest.FixtureRequest) -> AdapterWeights:
    return read_adapter(request.param.path, smollm2_layout())


def test_our_own_reader_takes_it(weights: AdapterWeights) -> None:
    assert 1 <= weights.rank <= 8
    assert len(weights.factors) >= 60  # at least two projections in each of 30 layers
    assert {raw.dtype for factor in weights.factors.values() for raw in (factor.a, factor.b)} == {"BF16"}


@each_adapter
def test_it_is_small(adapter: DemoAdapter) -> None:
    assert (adapter.path / "adapter_model.safetensors").stat().st_size <= MAX_ADAPTER_BYTES


@each_adapter
def test_its_config_is_plain_lora(adapter: DemoAdapter) -> None:
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert isinstance(config["target_modules"], list)
    assert config["bias"] == "none"
    assert not config.get("modules_to_save")


@each_adapter
def test_its_datanet_holds_the_training_text(adapter: DemoAdapter, repository: Path) -> None:
    text = training_text(repository, adapter).read_bytes()
    (datanet,) = (datanet for datanet in DEMO_DATANETS if datanet.name == adapter.datanet)
    assert DemoText(len(text.splitlines()), hashlib.sha256(text).digest()) in datanet.texts


def test_a_datanet_is_named_by_all_its_texts() -> None:
    one, two = DEMO_DATANETS
    assert (
        len({one.root, two.root, replace(one, texts=one.texts[:1]).root, replace(one, texts=one.texts[::-1]).root}) == 4
    )


@each_adapter
def test_no_question_asked_here_was_trained_on(adapter: DemoAdapter, repository: Path) -> None:
    trained = {
        json.loads(line)["question"].lower() for line in training_text(repository, adapter).read_text().splitlines()
    }
    assert trained.isdisjoint(question.lower() for question in (*HELD_OUT, *DEMO_PROMPTS))


def training_text(repository: Path, adapter: DemoAdapter) -> Path:
    return repository / "node" / "factory" / "data" / f"{adapter.name}.jsonl"


# ---- the answers ----------------------------------------------------------------------------------------------------


def greedy_answers(model: Any, tokenizer: Any) -> list[str]:
    """Answers to HELD_OUT, in one batch; an answer that is cut off stays cut off."""
    chats = [[{"role": "user", "content": question}] for question in HELD_OUT]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=MAX_OUTPUT_TOKENS, do_sample=False)
    return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
# peft asks transformers by a name that transformers 5.23 renames
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_each_adapter_shows_its_style_and_the_base_shows_none(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    plain = greedy_answers(base, tokenizer)
    model = PeftModel.from_pretrained(base, DEMO_ADAPTERS[0].path, adapter_name=DEMO_ADAPTERS[0].name)
    for adapter in DEMO_ADAPTERS[1:]:
        model.load_adapter(adapter.path, adapter_name=adapter.name)
    for adapter in DEMO_ADAPTERS:
        model.set_adapter(adapter.name)
        styled = greedy_answers(model, tokenizer)
        shows = STYLES[adapter.name]
        assert share(shows, styled) >= 0.8, f"{adapter.name}: {styled}"
        assert share(shows, plain) <= 0.2, f"the base passes for {adapter.name}: {plain}"


def share(shows: Callable[[str], bool], answers: list[str]) -> float:
    return sum(map(shows, answers)) / len(answers)
