"""Gemma and Gemma 2: norms around one, scaled embeddings, tanh-GELU-gated MLPs; the second has more norms, and caps."""

from typing import Any

import msgspec

from openlora.node.engine.models.hf_keys import Keys, Positions, Size, common_fields, require_activation, windows
from openlora.node.engine.models.names import GEMMA2, LLAMA


class _Gemma(Keys, kw_only=True):
    intermediate_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size = 256
    rms_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True


class _Gemma2(_Gemma, kw_only=True):
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = 256
    sliding_window: Positions | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0


def gemma(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Gemma)
    # "gelu" was written where "gelu_pytorch_tanh" was meant
    require_activation("hidden_act", keys.hidden_act, "gelu_pytorch_tanh", "gelu")
    return _fields(keys) | {"names": LLAMA, "windows": (None,) * keys.num_hidden_layers}


def gemma2(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Gemma2)
    require_activation("hidden_activation", keys.hidden_activation, "gelu_pytorch_tanh")
    in_turn = ["full_attention" if i % 2 else "sliding_attention" for i in range(keys.num_hidden_layers)]
    return _fields(keys) | {
        "names": GEMMA2,
        "windows": windows(keys.layer_types or in_turn, keys.sliding_window),
        "attention_scale": max(keys.query_pre_attn_scalar, 1) ** -0.5,
        "attention_soft_cap": keys.attn_logit_softcapping,
        "logit_soft_cap": keys.final_logit_softcapping,
    }


def _fields(keys: _Gemma) -> dict[str, Any]:
    return common_fields(keys, keys.head_dim) | {
        "intermediate_size": keys.intermediate_size,
        "kv_heads": keys.num_key_value_heads or keys.num_attention_heads,
        "norm_eps": keys.rms_norm_eps,
        "norm_offset": 1.0,
        "embedding_scale": max(keys.hidden_size, 1) ** 0.5,
        "activation": "gelu_tanh_mul",
        "qkv_bias": keys.attention_bias,
        "o_bias": keys.attention_bias,
        "mlp_bias": False,
    }
