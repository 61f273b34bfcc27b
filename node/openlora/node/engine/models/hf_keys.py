"""The keys of `config.json` that every family has, and what they mean."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from openlora.node.engine.models.hf_rope import MAX_POSITIONS, rotation
from openlora.node.errors import ModelError
from openlora.node.malformed import quote

MAX_LAYERS = 1024
Size = Annotated[int, msgspec.Meta(le=2**31 - 1)]  # beyond it, arithmetic overflows
Positions = Annotated[int, msgspec.Meta(le=MAX_POSITIONS)]


class Keys(msgspec.Struct, kw_only=True):
    """The keys that matter; the many others do not change what is computed."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Annotated[int, msgspec.Meta(le=MAX_LAYERS)]
    num_attention_heads: Size
    max_position_embeddings: Positions
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    original_max_position_embeddings: Positions | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    is_causal: bool | None = None
    use_bidirectional_attention: bool | None = None
    per_layer_config: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None


def common_fields(keys: Keys, head_size: int) -> dict[str, Any]:
    """Those fields of DecoderConfig that mean the same in every family. Raises ModelError, naming the first thing that
    the decoder would compute wrongly."""
    if keys.use_bidirectional_attention or keys.is_causal is False:
        named = "use_bidirectional_attention" if keys.use_bidirectional_attention else "is_causal false"
        raise ModelError(f"{named} is not served: a row must not see what follows it")
    if keys.per_layer_config is not None:
        raise ModelError("per_layer_config is not served: all layers must be alike")
    if keys.quantization_config is not None:
        raise ModelError("quantization_config is not served: use the unquantised model or a GGUF file")
    outside = {"rope_theta": keys.rope_theta, "partial_rotary_factor": keys.partial_rotary_factor}
    rope = outside | (keys.rope_scaling or keys.rope_parameters or {})  # transformers' own precedence
    return {
        "vocab_size": keys.vocab_size,
        "hidden_size": keys.hidden_size,
        "layers": keys.num_hidden_layers,
        "heads": keys.num_attention_heads,
        "head_size": head_size,
        "attention_scale": max(head_size, 1) ** -0.5,
        "max_positions": keys.max_position_embeddings,
        "tied_head": keys.tie_word_embeddings,
    } | rotation(rope, head_size, keys.max_position_embeddings, keys.original_max_position_embeddings)


def require_activation(key: str, found: str, *served: str) -> None:
    if found not in served:
        be = "are" if len(served) > 1 else "is"
        raise ModelError(f"{key} {quote(found)} is not served; {' and '.join(map(repr, served))} {be}")


def windows(layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """DecoderConfig.windows, of each layer's kind as transformers names it."""
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"layer_types {quote(kind)} is not served; 'full_attention' and 'sliding_attention' are")
        if kind == "sliding_attention" and window is None:
            raise ModelError("layer_types names 'sliding_attention', but sliding_window is not set")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
