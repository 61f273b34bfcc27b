"""Llama, Mistral, Ministral, Qwen 2 and 3: RMS norms, SiLU-gated MLPs; they differ in biases, windows, head norms."""

from typing import Any

import msgspec

from openlora.node.engine.models.hf_keys import Keys, Positions, Size, common_fields, require_activation, windows
from openlora.node.engine.models.names import LLAMA, QWEN3


class _Llama(Keys, kw_only=True):
    intermediate_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: list[str] | None = None


class _Mistral(_Llama, kw_only=True):
    sliding_window: Positions | None = 4096


class _Qwen(_Llama, kw_only=True):
    use_sliding_window: bool | None = False
    sliding_window: Positions | None = 4096
    max_window_layers: Size = 28


class _Qwen3(_Qwen, kw_only=True):
    head_dim: Size | None = 128


def llama(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Llama)
    biases = {"qkv_bias": keys.attention_bias, "o_bias": keys.attention_bias, "mlp_bias": keys.mlp_bias}
    return _fields(keys) | biases | {"windows": windows(_kinds(keys, "full_attention"), None)}


def mistral(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Mistral)
    every = "full_attention" if keys.sliding_window is None else "sliding_attention"
    return _fields(keys) | {"windows": windows(_kinds(keys, every), keys.sliding_window)}


def qwen2(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Qwen)
    return _fields(keys) | {"qkv_bias": True, "windows": _qwen_windows(keys)}


def qwen3(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Qwen3)
    biases = {"qkv_bias": keys.attention_bias, "o_bias": keys.attention_bias}
    return _fields(keys) | biases | {"names": QWEN3, "windows": _qwen_windows(keys)}


def _fields(keys: _Llama) -> dict[str, Any]:
    require_activation("hidden_act", keys.hidden_act, "silu", "swish")
    head_size = keys.head_dim or keys.hidden_size // max(keys.num_attention_heads, 1)
    return common_fields(keys, head_size) | {
        "names": LLAMA,
        "intermediate_size": keys.intermediate_size,
        "kv_heads": keys.num_key_value_heads or keys.num_attention_heads,
        "norm_eps": keys.rms_norm_eps,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
    }


def _qwen_windows(keys: _Qwen) -> tuple[int | None, ...]:
    """Unless `layer_types` says otherwise, the first `max_window_layers` see all."""
    window = keys.sliding_window if keys.use_sliding_window else None
    first = keys.num_hidden_layers if window is None else keys.max_window_layers
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(keys.num_hidden_layers)]
    return windows(keys.layer_types or kinds, window)


def _kinds(keys: _Llama, default: str) -> list[str]:
    return keys.layer_types or [default] * keys.num_hidden_layers
