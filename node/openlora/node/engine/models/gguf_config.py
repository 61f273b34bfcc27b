"""A GGUF file's metadata, as the fields of DecoderConfig."""

from typing import Any

from openlora.node.engine.gguf_file import ROPE_FACTORS, GgufFile
from openlora.node.engine.models import rope
from openlora.node.engine.models.names import LLAMA, QWEN3
from openlora.node.errors import ModelError
from openlora.node.malformed import quote

_WITHOUT_EFFECT: dict[str, tuple[float, ...]] = {  # keys that llama.cpp heeds in every family, where they do nothing
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.factor": (0.0, 1.0),
}
_NAMES = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": QWEN3}  # by architecture; Mistral's is "llama"


def read(file: GgufFile) -> dict[str, Any]:
    """The fields of DecoderConfig. Raises ModelError."""
    family = file.value("general.architecture", str)
    if family not in _NAMES:
        raise ModelError(f"general.architecture {quote(family)} is not served; {', '.join(_NAMES)} are")
    _refuse_unsupported(file, family)
    hidden_size = file.value(f"{family}.embedding_length", int)
    heads = file.value(f"{family}.attention.head_count", int)
    head_size = file.value(f"{family}.attention.key_length", int, hidden_size // max(heads, 1))
    layers, names = file.value(f"{family}.block_count", int), file.names()
    if layers > len(names):
        raise ModelError(f"{family}.block_count {layers} exceeds the file's {len(names)} tensors")
    return {
        "family": family,
        "names": _NAMES[family],
        "vocab_size": file.shape("model.embed_tokens.weight")[0] if "model.embed_tokens.weight" in names else 0,
        "hidden_size": hidden_size,
        "intermediate_size": file.value(f"{family}.feed_forward_length", int),
        "layers": layers,
        "heads": heads,
        "kv_heads": file.value(f"{family}.attention.head_count_kv", int, heads),
        "head_size": head_size,
        "attention_scale": max(head_size, 1) ** -0.5,
        "norm_eps": file.value(f"{family}.attention.layer_norm_rms_epsilon", float),
        "rope_frequencies": _rope_frequencies(file, family, head_size),
        "windows": _windows(file, family, layers),
        "max_positions": file.value(f"{family}.context_length", int),
        "tied_head": "lm_head.weight" not in names,
        "qkv_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "o_bias": "model.layers.0.self_attn.o_proj.bias" in names,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in names,
        "eos_token_ids": _eos_token_ids(file),
    }


def _refuse_unsupported(file: GgufFile, family: str) -> None:
    if file.value("split.count", int, 1) > 1:
        raise ModelError("a GGUF model split over several files is not served: merge it first")
    if file.value(f"{family}.expert_count", int, 0):
        raise ModelError(f"{family}.expert_count: mixtures of experts are not served")
    scaling = file.value(f"{family}.rope.scaling.type", str, "none")
    if scaling != "none":
        raise ModelError(f"{family}.rope.scaling.type {quote(scaling)} is not served; 'none' is")
    for key, neutral in _WITHOUT_EFFECT.items():
        found = file.value(f"{family}.{key}", type(neutral[0]), neutral[0])
        if found not in neutral:
            raise ModelError(f"{family}.{key} {found} is not served; {neutral[-1]} is")


def _windows(file: GgufFile, family: str, layers: int) -> tuple[int | None, ...]:
    """Mistral's window is that of every layer; of other families the file does not say which layers have it."""
    window = file.value(f"{family}.attention.sliding_window", int, 0)
    if window and family != "llama":
        raise ModelError(f"{family}.attention.sliding_window is not served: every layer must attend to all")
    return (window or None,) * layers


def _rope_frequencies(file: GgufFile, family: str, head_size: int) -> tuple[float, ...]:
    """Llama 3's scaling stands in the file as one divisor a frequency."""
    if file.value(f"{family}.rope.dimension_count", int, head_size) != head_size:
        raise ModelError(f"{family}.rope.dimension_count: partial rotation is not served")
    theta = file.value(f"{family}.rope.freq_base", float, 10_000.0)
    plain = tuple(map(float, rope.plain(theta, head_size)))
    if ROPE_FACTORS not in file.names():
        return plain
    divisors = [float(x) for x in file.read(ROPE_FACTORS).flatten()]
    if len(divisors) != len(plain) or not all(x > 0 for x in divisors):
        raise ModelError(f"{ROPE_FACTORS} does not hold {len(plain)} positive divisors")
    return tuple(f / x for f, x in zip(plain, divisors, strict=True))


def _eos_token_ids(file: GgufFile) -> tuple[int, ...]:
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return tuple(sorted({found for key in keys if (found := file.value(key, int, -1)) >= 0}))
