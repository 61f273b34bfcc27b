"""A Llama-family GGUF file as a Hugging Face directory: bfloat16 safetensors, configuration and tokenizer.

Byte for byte the same on every machine and under every version of its dependencies, so that the result has a pinned id;
its weights and tokenizer.json equal those of transformers' own conversion.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from openlora.node.engine.gguf_file import hf_name
from openlora.node.errors import ModelError

_CONTROL_TOKEN: Final = 3  # GGUF's token type of "<|im_start|>" and the like


def convert_llama(source: Path, destination: Path) -> None:
    """Write the model in the GGUF file `source` to the new folder `destination`.

    Needs architecture "llama" and a byte-level BPE tokenizer ("gpt2"); raises ModelError for any other. Memory: the
    largest tensor in float32, and the vocabulary.
    """
    reader: Any = GGUFReader(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if (metadata["general.architecture"], metadata["tokenizer.ggml.model"]) != ("llama", "gpt2"):
        raise ModelError(f"{source}: only Llama models with a byte-level BPE tokenizer can be converted")
    destination.mkdir()
    tensors = {hf_name(tensor.name): tensor for tensor in reader.tensors}
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    _write_json(destination / "config.json", _config(metadata, len(tokens), tied="lm_head.weight" not in tensors))
    _write_json(destination / "generation_config.json", _special_ids(metadata))
    _write_json(destination / "tokenizer.json", _tokenizer(metadata))
    _write_json(destination / "tokenizer_config.json", _tokenizer_config(metadata))
    (destination / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")
    heads = {
        "q_proj": metadata["llama.attention.head_count"],
        "k_proj": metadata["llama.attention.head_count_kv"],
    }
    with (destination / "model.safetensors").open("xb") as file:
        _write_weights(file, tensors, heads)


def _config(metadata: Mapping[str, Any], vocabulary: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_special_ids(metadata),
        "dtype": "bfloat16",
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": metadata["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    }


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json. No token of SmolLM2 joins digits, so that its digit splitter is not needed."""
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(number, tokens[number])
            for number, kind in enumerate(metadata["tokenizer.ggml.token_type"])
            if kind == _CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first],
            "pair": [first, second],
            "special_tokens": {},
        },
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _added_token(number: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


# ---- weights --------------------------------------------------------------------------------------------------------


def _write_weights(file: BinaryIO, tensors: Mapping[str, Any], heads: Mapping[str, int]) -> None:
    """A safetensors file of bfloat16, one tensor at a time, sorted by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF states the fastest dimension first
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name, tensor in sorted(tensors.items()):
        rows = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(header[name]["shape"])
        count = heads.get(name.split(".")[-2])
        file.write(to_bfloat16(rows if count is None else halves_first(rows, count)).tobytes())


def halves_first(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's order of the rotary rows: it stores pair (i, i + d/2) of each head side by side."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bit patterns of finite `values` rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
