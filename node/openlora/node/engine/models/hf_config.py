"""A Hugging Face model directory's `config.json`, as the fields of DecoderConfig."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from openlora.node.engine.models import rope
from openlora.node.errors import ModelError

_T = TypeVar("_T")
_MAX_BYTES = 1 << 20
_ROPE_DEFAULTS = {"llama": 10_000.0, "qwen2": 10_000.0}  # model_type → rope_theta; also the families served


class _Rope(msgspec.Struct):
    """`rope_parameters` (transformers 5) or `rope_scaling` (before)."""

    rope_type: str | None = None
    type: str | None = None  # rope_type's older name
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class _Config(msgspec.Struct):
    """The keys that matter; the many others do not change what is computed."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    auto_map: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def read(directory: Path) -> dict[str, Any]:
    """The fields of DecoderConfig. Raises ModelError."""
    config = _decode(directory / "config.json", _Config)
    _refuse_unsupported(config)
    head_size = config.head_dim or config.hidden_size // max(config.num_attention_heads, 1)
    qwen2 = config.model_type == "qwen2"
    return {
        "family": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_size": head_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_frequencies": _rope_frequencies(config, head_size),
        "max_positions": config.max_position_embeddings,
        "tied_head": config.tie_word_embeddings,
        "qkv_bias": qwen2 or config.attention_bias,
        "o_bias": not qwen2 and config.attention_bias,
        "mlp_bias": not qwen2 and config.mlp_bias,
        "eos_token_ids": _eos_token_ids(config, directory / "generation_config.json"),
    }


def _decode(path: Path, kind: type[_T]) -> _T:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise ModelError(f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}") from error


def _refuse_unsupported(config: _Config) -> None:
    """Name the first thing that this decoder would compute wrongly."""
    if config.model_type not in _ROPE_DEFAULTS:
        raise ModelError(f"model_type {config.model_type!r} is not served; {', '.join(_ROPE_DEFAULTS)} are")
    if config.hidden_act != "silu":
        raise ModelError(f"hidden_act {config.hidden_act!r} is not served; 'silu' is")
    if config.use_sliding_window:
        raise ModelError("use_sliding_window is not served: every layer must attend to the whole context")
    for kind in config.layer_types or ():
        if kind != "full_attention":
            raise ModelError(f"layer_types {kind!r} is not served; 'full_attention' is")
    if config.partial_rotary_factor not in (None, 1.0):
        raise ModelError(f"partial_rotary_factor {config.partial_rotary_factor} is not served; 1.0 is")
    if config.quantization_config is not None:
        raise ModelError("quantization_config is not served: use the unquantised model or a GGUF file")
    if config.auto_map is not None:
        raise ModelError("auto_map asks to run the checkpoint's own code, which is never done")


def _rope_frequencies(config: _Config, head_size: int) -> tuple[float, ...]:
    parameters = config.rope_parameters or config.rope_scaling or _Rope()
    theta = parameters.rope_theta or config.rope_theta or _ROPE_DEFAULTS[config.model_type]
    if not theta > 0:
        raise ModelError(f"rope_theta {theta} is not positive")
    kind = parameters.rope_type or parameters.type or "default"
    if kind == "default":
        return rope.frequencies(theta, head_size)
    if kind == "llama3":
        return rope.frequencies(theta, head_size, _llama3(parameters))
    raise ModelError(f"rope_type {kind!r} is not served; 'default' and 'llama3' are")


def _llama3(parameters: _Rope) -> rope.Llama3Scaling:
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


def _eos_token_ids(config: _Config, generation_file: Path) -> tuple[int, ...]:
    """Every end token that either file names; chat models name theirs in generation_config.json alone."""
    generation = _decode(generation_file, _Generation) if generation_file.exists() else _Generation()
    found: set[int] = set()
    for ids in (config.eos_token_id, generation.eos_token_id):
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))
