"""Adapters made of bytes, good ones and bad: a small base model's layout, and writers that check nothing."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openlora.node.adapters.config import CONFIG_FILE
from openlora.node.adapters.folder import WEIGHTS_FILE
from openlora.node.adapters.modules import EmbeddingShape, LinearShape, ModuleShape, NormShape

K = "model.layers.0.self_attn.k_proj"
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
LAYOUT = {Q: LinearShape(12, 8), DOWN: LinearShape(8, 20), "model.layers.1.self_attn.q_proj": LinearShape(12, 8)}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
TRAINED_ROWS = "token_adapter.trainable_tokens_delta"
NORM, LAYER_NORM = "model.norm", "model.layers.0.input_layernorm"
WHOLE_LAYOUT: dict[str, ModuleShape] = {
    **LAYOUT,
    EMBEDDING: EmbeddingShape(8, 10, tied=True),
    HEAD: LinearShape(10, 8),
    NORM: NormShape(8),
    LAYER_NORM: NormShape(8),
}
BIASED_LAYOUT = WHOLE_LAYOUT | {Q: LinearShape(12, 8, biased=True), K: LinearShape(4, 8, biased=True)}  # as Qwen's
RANK = 4

Arrays = dict[str, np.ndarray[Any, Any]]


def config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes, with `changes`; a change to `...` leaves the key out."""
    fields = {
        "auto_mapping": None,
        "base_model_name_or_path": "base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not ...}


def keys(module: str) -> tuple[str, str]:
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def arrays(rank: int = RANK, dtype: str = "<f4") -> Arrays:
    """A pair for every layer of LAYOUT; the same numbers each time."""
    generator = np.random.default_rng(0)
    made = {}
    for module, shape in LAYOUT.items():
        a, b = keys(module)
        made[a] = generator.normal(size=(rank, shape.in_features)).astype(dtype)
        made[b] = generator.normal(size=(shape.out_features, rank)).astype(dtype)
    return made


def key_of(module: str, tensor: str) -> str:
    return f"base_model.model.{module}.{tensor}"


def biases(value: float = 1.0) -> Arrays:
    """What lora_bias adds to `arrays`."""
    return {
        key_of(module, "lora_B.bias"): np.full(shape.out_features, value, "<f4") for module, shape in LAYOUT.items()
    }


def embedding_arrays(rank: int = RANK) -> Arrays:
    return {
        key_of(EMBEDDING, "lora_embedding_A"): np.ones((rank, 10), "<f4"),
        key_of(EMBEDDING, "lora_embedding_B"): np.ones((8, rank), "<f4"),
    }


def magnitudes() -> Arrays:
    """What DoRA adds to `arrays`."""
    return {
        key_of(module, "lora_magnitude_vector"): np.ones(shape.out_features, "<f4") for module, shape in LAYOUT.items()
    }


DTYPES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<f8": "F64", "|i1": "I8"}


def header(tensors: Arrays) -> dict[str, Any]:
    """The honest header of `tensors` in their order, without gaps."""
    fields, end = {}, 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        fields[name] = {"dtype": DTYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": [begin, end]}
    return fields


def container(head: Mapping[str, Any] | bytes, data: bytes, *, header_bytes: int | None = None) -> bytes:
    """A safetensors file with whatever header, padded as the library pads it."""
    encoded = head if isinstance(head, bytes) else json.dumps(head).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded) if header_bytes is None else header_bytes) + encoded + data


def data(tensors: Arrays) -> bytes:
    return b"".join(array.tobytes() for array in tensors.values())


def weights(tensors: Arrays | None = None) -> bytes:
    """An honest safetensors file."""
    tensors = arrays() if tensors is None else tensors
    return container({"__metadata__": {"format": "pt"}, **header(tensors)}, data(tensors))


def write_adapter(
    folder: Path, configuration: Mapping[str, Any] | bytes | None = None, safetensors: bytes | None = None
) -> Path:
    """An adapter folder; what is not given is as it should be."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = configuration if isinstance(configuration, bytes) else json.dumps(configuration or config()).encode()
    (folder / CONFIG_FILE).write_bytes(encoded)
    (folder / WEIGHTS_FILE).write_bytes(weights() if safetensors is None else safetensors)
    return folder
