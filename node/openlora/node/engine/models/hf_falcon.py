"""Falcon: layer norms, one fused projection for attention, MLPs without a gate, mostly beside attention."""

from dataclasses import replace
from typing import Any

import msgspec

from openlora.node.engine.models.hf_keys import Keys, Positions, Size, common_fields, require_activation
from openlora.node.engine.models.names import FALCON, Names
from openlora.node.errors import ModelError


class _Falcon(Keys, kw_only=True):
    max_position_embeddings: Positions = 2048
    ffn_hidden_size: Size | None = None
    num_kv_heads: Size | None = None
    layer_norm_epsilon: float = 1e-5
    activation: str = "gelu"
    bias: bool = False
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    num_ln_in_parallel_attn: int | None = None
    tie_word_embeddings: bool = True


def falcon(text: bytes) -> dict[str, Any]:
    keys = msgspec.json.decode(text, type=_Falcon)
    if keys.alibi:
        raise ModelError("alibi is not served; rotary positions are")
    require_activation("activation", keys.activation, "gelu")
    return common_fields(keys, keys.hidden_size // max(keys.num_attention_heads, 1)) | {
        "names": _names(keys),
        "intermediate_size": keys.ffn_hidden_size or 4 * keys.hidden_size,
        "kv_heads": _kv_heads(keys),
        "norm_eps": keys.layer_norm_epsilon,
        "windows": (None,) * keys.num_hidden_layers,
        "layer_norms": True,
        "activation": "gelu",
        "parallel": keys.parallel_attn,
        "qkv_bias": keys.bias,
        "o_bias": keys.bias,
        "mlp_bias": keys.bias,
    }


def _names(keys: _Falcon) -> Names:
    """By the number of norms before the two parts of a layer."""
    norms = keys.num_ln_in_parallel_attn or (2 if keys.new_decoder_architecture else 1)
    match keys.new_decoder_architecture, keys.parallel_attn, norms:
        case True, True, 2:
            return replace(FALCON, attention_norm="ln_attn", mlp_norm="ln_mlp")
        case _, True, 1:
            return FALCON
        case False, False, _:
            return replace(FALCON, mlp_norm="post_attention_layernorm")
    raise ModelError(
        f"new_decoder_architecture {keys.new_decoder_architecture} with parallel_attn {keys.parallel_attn} and "
        f"num_ln_in_parallel_attn {norms} is not served"
    )


def _kv_heads(keys: _Falcon) -> int:
    if keys.new_decoder_architecture:
        return keys.num_kv_heads or keys.num_attention_heads
    return 1 if keys.multi_query else keys.num_attention_heads
