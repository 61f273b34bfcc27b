"""The keys of `config.json` that every family has, and what they mean."""

from collections.abc import Sequence
from typing import Any

import msgspec

from openlora.node.engine.models import rope
from openlora.node.errors import ModelError

_THETA = 10_000.0


class Rope(msgspec.Struct):
    """`rope_parameters` (transformers 5) or `rope_scaling` (before)."""

    rope_type: str | None = None
    type: str | None = None  # rope_type's older name
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class Keys(msgspec.Struct, kw_only=True):
    """The keys that matter; the many others do not change what is computed."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rope_theta: float | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    use_bidirectional_attention: bool | None = None
    quantization_config: dict[str, Any] | None = None


def common_fields(keys: Keys, head_size: int) -> dict[str, Any]:
    """Those fields of DecoderConfig that mean the same in every family. Raises ModelError, naming the first thing that
    the decoder would compute wrongly."""
    if keys.use_bidirectional_attention:
        raise ModelError("use_bidirectional_attention is not served: a row must not see what follows it")
    if keys.quantization_config is not None:
        raise ModelError("quantization_config is not served: use the unquantised model or a GGUF file")
    return {
        "vocab_size": keys.vocab_size,
        "hidden_size": keys.hidden_size,
        "layers": keys.num_hidden_layers,
        "heads": keys.num_attention_heads,
        "head_size": head_size,
        "attention_scale": max(head_size, 1) ** -0.5,
        "rope_frequencies": _rope_frequencies(keys, head_size),
        "max_positions": keys.max_position_embeddings,
        "tied_head": keys.tie_word_embeddings,
    }


def require_activation(found: str, *served: str) -> None:
    if found not in served:
        raise ModelError(f"hidden_act {found!r} is not served; {' and '.join(map(repr, served))} are")


def windows(layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """DecoderConfig.windows, of each layer's kind as transformers names it."""
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"layer_types {kind!r} is not served; 'full_attention' and 'sliding_attention' are")
        if kind == "sliding_attention" and window is None:
            raise ModelError("layer_types names 'sliding_attention', but sliding_window is not set")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope_frequencies(keys: Keys, head_size: int) -> tuple[float, ...]:
    parameters = keys.rope_parameters or keys.rope_scaling or Rope()
    for factor in (keys.partial_rotary_factor, parameters.partial_rotary_factor):
        if factor not in (None, 1.0):
            raise ModelError(f"partial_rotary_factor {factor} is not served; 1.0 is")
    theta = parameters.rope_theta or keys.rope_theta or _THETA
    if not theta > 0:
        raise ModelError(f"rope_theta {theta} is not positive")
    match parameters.rope_type or parameters.type or "default":
        case "default":
            return rope.frequencies(theta, head_size)
        case "linear":
            return rope.frequencies(theta, head_size, _linear(parameters))
        case "llama3":
            return rope.frequencies(theta, head_size, _llama3(parameters))
        case kind:
            raise ModelError(f"rope_type {kind!r} is not served; 'default', 'linear' and 'llama3' are")


def _linear(parameters: Rope) -> rope.LinearScaling:
    if parameters.factor is None or not parameters.factor > 0:
        raise ModelError(f"rope_type 'linear' needs a positive factor, not {parameters.factor}")
    return rope.LinearScaling(parameters.factor)


def _llama3(parameters: Rope) -> rope.Llama3Scaling:
    values = (
        parameters.factor,
        parameters.low_freq_factor,
        parameters.high_freq_factor,
        parameters.original_max_position_embeddings,
    )
    factor, low, high, original = values
    if factor is None or low is None or high is None or original is None:
        raise ModelError("rope_type 'llama3' lacks one of its four parameters")
    if not (factor > 0 and high > low and original > 0):
        raise ModelError(f"rope_type 'llama3' with the parameters {values} makes no sense")
    return rope.Llama3Scaling(factor, low, high, original)
