"""Every setting of PEFT's LoRA, and every other type of adapter that PEFT makes: served, passed over or refused by
name."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model

from openlora.node.adapters.config import parse_config
from openlora.node.adapters.format import read_adapter
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import AdapterError
from tests.node.engine.test_parity import tiny_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own use
]

TARGETS = ["q_proj", "down_proj"]
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS)
SERVED: dict[str, Any] = {  # each with an effect, which test_adapter_kinds and others compare with peft's
    "r": 4,
    "lora_alpha": 3,
    "use_rslora": True,
    "use_dora": True,
    "lora_bias": True,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "target_modules": ["v_proj"],
    "exclude_modules": ["v_proj"],
    "layers_to_transform": [1],
    "layers_pattern": "layers",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "ensure_weight_tying": True,
    "bias": "all",  # by the tensors
}
PASSED_OVER: dict[str, Any] = {  # what changes no answer
    "peft_type": "LORA",
    "task_type": None,
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    "peft_version": "0.21.2",
    "base_model_name_or_path": "elsewhere",
    "revision": "main",
    "inference_mode": False,
    "lora_dropout": 0.5,
    "fan_in_fan_out": True,
    "init_lora_weights": "gaussian",
    "megatron_core": "megatron.core",
    "loftq_config": {"loftq_bits": 4},
    "eva_config": asdict(peft.EvaConfig()),
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": asdict(peft.LoraGAConfig()),
    "velora_config": asdict(peft.VeloraConfig()),
    "monteclora_config": asdict(peft.MontecloraConfig()),
    "qalora_group_size": 32,
    "runtime_config": {"ephemeral_gpu_offload": True},
}
REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": asdict(peft.ArrowConfig()),
    "kasa_config": asdict(peft.KasaConfig()),
    "layer_replication": [[0, 2], [1, 3]],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "target_parameters": ["q_proj.weight"],
    "use_bdlora": asdict(peft.BdLoraConfig()),
    "use_qalora": True,
}
OTHERS: list[PeftConfig] = [
    peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2),
    peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4),
    peft.FourierFTConfig(target_modules=TARGETS, n_frequency=5),
    peft.HRAConfig(target_modules=TARGETS),
    peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    peft.LNTuningConfig(target_modules=["norm"]),
    peft.LoHaConfig(target_modules=TARGETS),
    peft.LoKrConfig(target_modules=TARGETS),
    peft.MissConfig(target_modules=TARGETS),
    peft.OFTConfig(target_modules=TARGETS, r=0, oft_block_size=4),
    peft.PrefixTuningConfig(num_virtual_tokens=4),
    peft.PromptEncoderConfig(num_virtual_tokens=4),
    peft.PromptTuningConfig(num_virtual_tokens=4),
    peft.RandLoraConfig(target_modules=TARGETS),
    peft.TrainableTokensConfig(token_indices=[1, 2]),
    peft.VBLoRAConfig(target_modules=TARGETS, num_vectors=4, vector_length=4),
    peft.VeraConfig(target_modules=["q_proj"]),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tiny_models()["llama3"].save_pretrained(path)
    return path


def adapted(base: Path, config: PeftConfig) -> Any:
    config.task_type = "CAUSAL_LM"
    return get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)


def test_every_setting_of_lora_is_classified_once() -> None:
    classified = [*SERVED, *PASSED_OVER, *REFUSED]
    assert len(set(classified)) == len(classified)
    assert set(classified) == {field.name for field in fields(LoraConfig)}


def configuration(**changes: Any) -> bytes:
    """As peft writes it."""
    return json.dumps(LORA.to_dict() | {"target_modules": TARGETS} | changes).encode()


def test_what_is_served_is_read_and_what_changes_no_answer_is_passed_over() -> None:
    plain = parse_config(configuration())
    for name, value in PASSED_OVER.items():
        assert parse_config(configuration(**{name: value})) == plain, name
    for name, value in SERVED.items():
        if name in ("layers_pattern", "bias"):  # means nothing alone; said by the tensors
            continue
        assert parse_config(configuration(**{name: value})) != plain, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_answers_otherwise_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(AdapterError, match=rf"adapter_config.json: {name} = .* is not served: "):
        parse_config(configuration(**{name: REFUSED[name]}))


@pytest.mark.parametrize("peft_type", [one.value for one in PeftType if one != PeftType.LORA])
def test_every_other_type_is_refused_by_its_name(peft_type: str) -> None:
    with pytest.raises(AdapterError, match=rf"peft_type = '{peft_type}' is not served: adapters of type LORA are; "):
        parse_config(configuration(peft_type=peft_type))


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.peft_type.value)
def test_real_files_of_other_types_are_refused_by_their_name(base: Path, tmp_path: Path, config: PeftConfig) -> None:
    adapted(base, config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=f"peft_type = '{config.peft_type.value}' is not served: "):
        read_adapter(tmp_path, DecoderConfig.from_path(base).modules())


def test_what_peft_makes_lora_of_is_served(base: Path, tmp_path: Path) -> None:
    model = adapted(base, peft.LoHaConfig(target_modules=TARGETS, init_weights=False))
    peft.save_as_lora(tmp_path, model, rank=8)
    assert read_adapter(tmp_path, DecoderConfig.from_path(base).modules()).rank == 8
