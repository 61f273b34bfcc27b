"""A random two-layer model and adapters for it, written as files; small enough for a pass to take a millisecond."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openlora.node.engine.models.config import DecoderConfig

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_config(directory: Path, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    return directory


def random_tensors(config: DecoderConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Norms near one, the rest large enough for peaked distributions."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: 1 + torch.randn(shape, generator=rng) / 8
        if "norm" in name
        else torch.randn(shape, generator=rng) * (0.8 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5)
        for name, shape in config.tensors().items()
    }


def write_model(directory: Path, seed: int = 0, stored: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Hugging Face directory with weights of type `stored`."""
    write_config(directory, **changes)
    tensors = random_tensors(DecoderConfig.from_path(directory), seed)
    save_file({name: tensor.to(stored) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def write_adapter(
    directory: Path, config: DecoderConfig, seed: int, *, rank: int = 4, targets: tuple[str, ...] = TARGETS
) -> Path:
    """A PEFT directory whose effect is large enough to change tokens."""
    directory.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, shape in config.layout().items():
        if module.rpartition(".")[2] in targets:
            a, b = (
                torch.randn(rank, shape.in_features, generator=rng),
                torch.randn(shape.out_features, rank, generator=rng),
            )
            tensors[f"base_model.model.{module}.lora_A.weight"] = a / shape.in_features**0.5
            tensors[f"base_model.model.{module}.lora_B.weight"] = b / rank**0.5
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank // 2, "target_modules": list(targets)}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory
