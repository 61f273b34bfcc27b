"""Hostile configurations, beside good weights."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openlora.node.adapters.config import CONFIG_FILE
from tests.node.adapters.adapter_files import config


@dataclass(frozen=True, slots=True)
class Hostile:
    """A good adapter, spoilt in one way, and what the refusal must say: a regular expression."""

    name: str
    reason: str
    spoil: Callable[[Path], None]


def with_config(name: str, reason: str, content: bytes | dict[str, Any]) -> Hostile:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Hostile(name, reason, lambda folder: void((folder / CONFIG_FILE).write_bytes(encoded)))


def with_value(key: str, reason: str, value: Any) -> Hostile:
    return with_config(f"{key:.30} is {value!r:.40}", reason, config(**{key: value}))


def void(_: object) -> None:
    """Drop a result."""


UNSUPPORTED: list[tuple[str, Any]] = [
    ("alora_invocation_tokens", [1, 2]),
    ("arrow_config", {"top_k": 3}),
    ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}),
    ("auto_mapping", {"parent_library": "../evil"}),
    ("auto_mapping", {"base_model_class": "LlamaForCausalLM", "parent_library": "__main__"}),
    ("auto_mapping", {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"}),
    ("bias", None),
    ("bias", "some"),
    ("corda_config", "covariances"),
    ("enable_lora", [True, False, True]),
    ("eva_config", "rho"),
    ("fan_in_fan_out", 0),
    ("inference_mode", "yes"),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_16"),
    ("init_lora_weights", "olora"),
    ("init_lora_weights", "loftq"),
    ("init_lora_weights", "corda"),
    ("init_lora_weights", 1),
    ("kasa_config", {}),
    ("layer_replication", [[0, 4], [2, 5]]),
    ("loftq_config", 4),
    ("lora_dropout", "0"),
    ("lora_dropout", 10**400),
    ("qalora_group_size", -(10**4000)),
    ("lora_ga_config", []),
    ("megatron_config", {"tensor_model_parallel_size": 2}),
    ("megatron_core", ["os"]),
    ("monteclora_config", "samples"),
    ("runtime_config", "gpu"),
    ("target_parameters", ["experts"]),
    ("task_type", "SEQ_CLS"),
    ("use_bdlora", True),
    ("use_qalora", True),
    ("velora_config", [4]),
]

UNKNOWN: list[tuple[str, Any]] = [
    ("tokenizer_kwargs", {"trust_remote_code": True}),
    ("trust_remote_code", True),
    ("custom_pipeline", "x.py"),
    ("__class__", "os.system"),
    ("chat_template", "{{ ''.__class__ }}"),
    ("R", 4),
    ("", 0),
    ("x" * 10_000, 0),
    ("\x1b[2J\n", 0),
    ("\ud800", 0),
]

VALUES: list[tuple[str, str, Any]] = [
    ("r", "r must be an integer", 0),
    ("r", "r must be an integer", -1),
    ("r", "r must be an integer", 257),
    ("r", "r must be an integer", 2**64 + 4),
    ("r", "r must be an integer", 4.0),
    ("r", "r must be an integer", True),
    ("r", "r must be an integer", "4"),
    ("r", "r must be an integer", None),
    ("r", "r is missing", ...),
    ("trainable_token_indices", "lists of tokens", 1),
    ("trainable_token_indices", "lists of tokens", [-1]),
    ("trainable_token_indices", "lists of tokens", [True]),
    ("trainable_token_indices", "lists of tokens", [10**4000]),
    ("trainable_token_indices", "lists of tokens", {"embed_tokens": 1}),
    ("trainable_token_indices", "lists of tokens", {"embed_tokens": [1], "lm_head": [1], "score": [1]}),
    ("trainable_token_indices", "literal module names", {"": [1]}),
    ("trainable_token_indices", "names 'score', but", {"score": [1]}),
    ("trainable_token_indices", "names 'model.embed_tokens', but", {"embed_tokens": [1], "model.embed_tokens": [2]}),
    ("trainable_token_indices", "lm_head.token_adapter.* is missing", {"lm_head": [1]}),
    ("trainable_token_indices", "embed_tokens.token_adapter.* is missing", {"embed_tokens": [1], "lm_head": [1]}),
    ("trainable_token_indices", "1 to 256 tokens, each once", []),
    ("trainable_token_indices", "1 to 256 tokens, each once", [1, 1]),
    ("trainable_token_indices", "1 to 256 tokens, each once", list(range(257))),
    ("lora_alpha", "finite 32-bit", 1e39),
    ("lora_alpha", "finite 32-bit", -1e39),
    ("lora_alpha", "finite 32-bit", 10**400),
    ("lora_alpha", "finite 32-bit", True),
    ("lora_alpha", "finite 32-bit", "16"),
    ("lora_alpha", "finite 32-bit", None),
    ("lora_alpha", "finite 32-bit", [8]),
    ("lora_alpha", "lora_alpha is missing", ...),
    ("lora_alpha", "the scale 7.5e\\+37 of .* overflows bfloat16", 3e38),
    ("alpha_pattern", "the scale -7.5e\\+37 of .* overflows bfloat16", {"mlp.down_proj": -3e38}),
    ("use_rslora", "true or false", 1),
    ("use_rslora", "true or false", "true"),
    ("peft_type", "peft_type = 'LOHA' is not served: .*save_as_lora", "LOHA"),
    ("peft_type", "peft_type = None is not served", None),
    ("peft_type", "peft_type = a list is not served", ["LORA"]),
    ("peft_type", "peft_type is missing", ...),
    ("target_modules", "list of literal", ""),
    ("target_modules", "list of literal", None),
    ("target_modules", "list of literal", []),
    ("target_modules", "list of literal", ["q_proj"] * 5000),
    ("target_modules", "is missing", ...),
    ("target_modules", "literal module names", [".*proj"]),
    ("target_modules", "literal module names", ["(([a-z_0-9.])+)+X"]),
    ("target_modules", "literal module names", ["../q_proj"]),
    ("target_modules", "literal module names", [""]),
    ("target_modules", "literal module names", [1]),
    ("target_modules", "literal module names", [["q_proj"]]),
    ("target_modules", "literal module names", ["q_proj\n"]),
    ("target_modules", "literal module names", ["q_proj\N{CYRILLIC SMALL LETTER A}"]),
    ("target_modules", "literal module names", ["a" * 257]),
    ("target_modules", "lm_head.lora_A.weight' is missing", ["q_proj", "down_proj", "lm_head"]),
    ("target_modules", "embed_tokens.lora_embedding_A' is missing", ["q_proj", "down_proj", "embed_tokens"]),
    ("target_modules", "names 'norm', which is no linear layer", ["q_proj", "down_proj", "norm"]),
    ("target_modules", "names 'self_attn', which is no linear layer", ["q_proj", "down_proj", "self_attn"]),
    ("target_modules", "leave no linear layer", ["query", "value"]),
    ("target_modules", "literal module names", ["q_proj", "down_proj", "^lm_head"]),
    ("rank_pattern", "object of literal", ["q_proj"]),
    ("rank_pattern", "literal module names", {"(.+)+q": 4}),
    ("rank_pattern", "r?ank_pattern.q_proj must be an integer", {"q_proj": 257}),
    ("rank_pattern", "must be an integer", {"q_proj": 0}),
    ("rank_pattern", "must be an integer", {"q_proj": True}),
    ("rank_pattern", r"has shape \(4, 8\), not \(8, 8\)", {"q_proj": 8}),
    ("alpha_pattern", "literal module names", {"(.+)+q": 4}),
    ("alpha_pattern", "finite 32-bit", {"q_proj": 1e39}),
    ("alpha_pattern", "finite 32-bit", {"q_proj": "8"}),
    ("rank_pattern", "literal module names", {"^": 4}),
    ("rank_pattern", "literal module names", {"^^q_proj": 4}),
    ("ensure_weight_tying", "true or false", 1),
    ("use_dora", "true or false", 1),
    ("use_dora", "true or false", None),
    ("use_dora", "lora_magnitude_vector' is missing", True),
    ("lora_bias", "true or false", 1),
    ("lora_bias", "true or false", "true"),
    ("lora_bias", "lora_B.bias' is missing", True),
    ("exclude_modules", "list of literal", ""),
    ("exclude_modules", "list of literal", {"a": 1}),
    ("exclude_modules", "literal module names", ["(((a+)+)+)b"]),
    ("exclude_modules", "belongs to no layer", ["down_proj"]),
    ("exclude_modules", "leave no linear layer", ["q_proj", "down_proj"]),
    ("layers_to_transform", "layers' numbers", "0"),
    ("layers_to_transform", "layers' numbers", True),
    ("layers_to_transform", "layers' numbers", [0, False]),
    ("layers_to_transform", "layers' numbers", [0.0]),
    ("layers_to_transform", "layers' numbers", [-1]),
    ("layers_to_transform", "layers' numbers", 10**400),
    ("layers_to_transform", "layers' numbers", [0] * 5000),
    ("layers_to_transform", "belongs to no layer", [0]),
    ("layers_to_transform", "leave no linear layer", 7),
    ("layers_pattern", "without layers_to_transform", "layers"),
    ("layers_pattern", "without layers_to_transform", {"a": 1}),
    ("modules_to_save", "list of literal", "lm_head"),
    ("modules_to_save", "list of literal", ["lm_head"] * 5000),
    ("modules_to_save", "literal module names", ["(((a+)+)+)b"]),
    ("modules_to_save", "literal module names", [""]),
    ("modules_to_save", "names 'self_attn', but", ["self_attn"]),
    ("modules_to_save", "names 'model.layers.0', but", ["score", "model.layers.0"]),
    ("modules_to_save", "lm_head.weight' is missing", ["lm_head"]),
    ("modules_to_save", "input_layernorm.weight' is missing|model.norm.weight' is missing", ["norm"]),
    ("modules_to_save", "down_proj.weight' is missing", ["down_proj"]),
]


def nested(depth: int) -> bytes:
    """Parses, perhaps, but walking it may exhaust the stack."""
    return PLAIN[:-1] + b', "revision": ' + b"[" * depth + b"]" * depth + b"}"


PLAIN = json.dumps(config()).encode()

CONFIGS = [
    *(with_value(key, f"{key} = .* is not served: ", value) for key, value in UNSUPPORTED),
    *(with_value(key, "unknown key", value) for key, value in UNKNOWN),
    *(with_value(key, reason, value) for key, reason, value in VALUES),
    with_config("rank of the files differs", r"has shape \(4, 8\), not \(8, 8\)", config(r=8)),
    with_config("duplicate key", "'r' occurs twice", PLAIN[:-1] + b', "r": 8}'),
    with_config("duplicate nested key", "occurs twice", PLAIN[:-1] + b', "rank_pattern": {"q_proj": 4, "q_proj": 8}}'),
    with_config("alpha NaN", "NaN is not", PLAIN.replace(b'"lora_alpha": 8', b'"lora_alpha": NaN')),
    with_config("alpha Infinity", "Infinity is not", PLAIN.replace(b'"lora_alpha": 8', b'"lora_alpha": Infinity')),
    with_config("alpha 1e999", "finite 32-bit", PLAIN.replace(b'"lora_alpha": 8', b'"lora_alpha": 1e999')),
    with_config("digits without end", "JSON", PLAIN.replace(b'"r": 4', b'"r": ' + b"9" * 60_000)),
    with_config("nested arrays", "nested too deeply", b"[" * 65_536),
    with_config("nested objects", "nested too deeply", b'{"a":' * 13_000),
    *(
        with_config(f"nested {depth} deep", "is not served: text|too deeply", nested(depth))
        for depth in (2, 100, 300, 450, 700, 800, 900, 950, 990)
    ),
    with_config("nested below a key", "nested too deeply", PLAIN[:-1] + b', "revision": ' + b"[" * 60_000),
    with_config("64 KiB and a byte", "where 1 to 65536", PLAIN + b" " * (65_537 - len(PLAIN))),
    with_config("an array", "one JSON object", b"[1]"),
    with_config("a text", "one JSON object", b'"LORA"'),
    with_config("truncated", "JSON", PLAIN[:-1]),
    with_config("two documents", "JSON", PLAIN + PLAIN),
    with_config("a byte order mark", "JSON", b"\xef\xbb\xbf" + PLAIN),
    with_config("UTF-16", "UTF-8|JSON", PLAIN.decode().encode("utf-16")),
    with_config("not UTF-8", "UTF-8", PLAIN.replace(b'base"', b'\xff"')),
    with_config("zero bytes", "where 1 to", b""),
    with_config("NUL bytes", "JSON", bytes(100)),
    with_config("a pickled configuration", "UTF-8|JSON", pickle.dumps({"r": 4})),
]
