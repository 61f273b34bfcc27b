"""DecoderConfig: what is read, and what is refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openlora.node.adapters.modules import LinearShape
from openlora.node.engine.models import rope
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ModelError
from tests.node.engine.tiny import CONFIG, write_config

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(directory: Path, **changes: Any) -> DecoderConfig:
    return DecoderConfig.from_path(write_config(directory, **changes))


def test_needs_no_torch() -> None:
    code = "import sys, openlora.node.engine.models.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layout_names_every_linear_layer_as_peft_does(tmp_path: Path) -> None:
    layout = read(tmp_path).layout()
    assert len(layout) == 2 * 7 + 1
    assert layout["model.layers.1.self_attn.k_proj"] == LinearShape(16, 32)
    assert layout["model.layers.0.mlp.down_proj"] == LinearShape(32, 48)
    assert layout["lm_head"] == LinearShape(97, 32)


def test_tensors_follow_the_family(tmp_path: Path) -> None:
    llama = read(tmp_path).tensors()
    assert llama["lm_head.weight"] == (97, 32)
    assert not any(name.endswith(".bias") for name in llama)
    tied_qwen2 = read(tmp_path, model_type="qwen2", tie_word_embeddings=True).tensors()
    assert "lm_head.weight" not in tied_qwen2
    biases = {name.rpartition("layers.0.")[2] for name in tied_qwen2 if name.endswith(".bias") and "layers.0." in name}
    assert biases == {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"}
    biased_llama = read(tmp_path, attention_bias=True, mlp_bias=True).tensors()
    assert sum(name.endswith(".bias") for name in biased_llama) == 2 * 7


def test_which_layers_have_a_window(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 4}
    assert read(tmp_path, **layers).windows == (None,) * 4
    assert read(tmp_path, model_type="mistral", **layers).windows == (4096,) * 4
    assert read(tmp_path, model_type="mistral", sliding_window=None, **layers).windows == (None,) * 4
    qwen = {"model_type": "qwen3", "sliding_window": 8, "max_window_layers": 3} | layers
    assert read(tmp_path, **qwen).windows == (None,) * 4
    assert read(tmp_path, use_sliding_window=True, **qwen).windows == (None, None, None, 8)
    named = ["sliding_attention", "full_attention"] * 2
    for model_type in ("mistral", "ministral"):
        assert read(tmp_path, model_type=model_type, layer_types=named, **layers).windows == (4096, None) * 2
    assert read(tmp_path, use_sliding_window=True, layer_types=named, **qwen).windows == (8, None) * 2


def test_swish_is_silu(tmp_path: Path) -> None:
    assert read(tmp_path, hidden_act="swish") == read(tmp_path, hidden_act="silu")


GEMMA = {"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}
FALCON = {"model_type": "falcon", "head_dim": None, "num_kv_heads": 2}
FUSED = "transformer.h.1.self_attention.query_key_value"


def test_gemmas_numbers(tmp_path: Path) -> None:
    gemma2 = read(tmp_path, **GEMMA, query_pre_attn_scalar=16, final_logit_softcapping=None)
    assert (gemma2.windows, gemma2.attention_scale) == ((4096, None), 0.25)
    assert (gemma2.attention_soft_cap, gemma2.logit_soft_cap) == (50.0, None)
    assert gemma2.tensors()["model.layers.0.post_feedforward_layernorm.weight"] == (32,)
    gemma = read(tmp_path, model_type="gemma", hidden_act="gelu")
    assert (gemma.activation, gemma.norm_offset, gemma.embedding_scale) == ("gelu_tanh_mul", 1.0, 32**0.5)


@pytest.mark.parametrize(
    ("changes", "fused", "kv_heads", "norms"),
    [
        ({}, 32 + 2 * 8, 1, {"input_layernorm"}),
        ({"multi_query": False}, 3 * 32, 4, {"input_layernorm"}),
        ({"parallel_attn": False}, 32 + 2 * 8, 1, {"input_layernorm", "post_attention_layernorm"}),
        ({"new_decoder_architecture": True}, 32 + 4 * 8, 2, {"ln_attn", "ln_mlp"}),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 32 + 4 * 8, 2, {"input_layernorm"}),
    ],
)
def test_falcons_forms(tmp_path: Path, changes: dict[str, Any], fused: int, kv_heads: int, norms: set[str]) -> None:
    config = read(tmp_path, **FALCON, auto_map={"AutoModel": "x.Y"}, **changes)
    assert config.kv_heads == kv_heads
    assert config.layout()[FUSED] == LinearShape(fused, 32)
    found = {name.split(".")[3] for name in config.tensors() if name.startswith("transformer.h.0.")}
    assert {name for name in found if "norm" in name or name.startswith("ln_")} == norms


def test_both_spellings_of_rope(tmp_path: Path) -> None:
    new = read(tmp_path, rope_parameters=LLAMA3_ROPE)
    old_rope = {key: value for key, value in LLAMA3_ROPE.items() if key not in ("rope_theta", "rope_type")}
    old = read(tmp_path, rope_parameters=None, rope_theta=500_000.0, rope_scaling=old_rope | {"type": "llama3"})
    assert new.rope_frequencies == old.rope_frequencies != read(tmp_path).rope_frequencies


def test_where_rope_is_said_twice_it_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """The older key stands above the newer one, and the config's own original positions above those of either."""
    linear = read(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert read(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}).rope_frequencies == linear.rope_frequencies
    outside = read(tmp_path, rope_parameters=LLAMA3_ROPE, original_max_position_embeddings=128)
    inside = read(tmp_path, rope_parameters=LLAMA3_ROPE | {"original_max_position_embeddings": 128})
    assert outside.rope_frequencies == inside.rope_frequencies
    assert inside.rope_frequencies != read(tmp_path, rope_parameters=LLAMA3_ROPE).rope_frequencies
    assert read(tmp_path, original_max_position_embeddings=128).rope_frequencies == read(tmp_path).rope_frequencies


def test_llama3_scaling_leaves_short_waves_and_stretches_long_ones() -> None:
    plain = rope.plain(500_000.0, 128)
    scaled = rope.llama3(plain, 8.0, 1.0, 4.0, 8192)
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    ratios = [a / b for a, b in zip(plain, scaled, strict=True)]
    assert ratios == sorted(ratios)
    assert any(1.0 < ratio < 8.0 for ratio in ratios)


def test_end_tokens_of_both_files(tmp_path: Path) -> None:
    write_config(tmp_path)
    ids = [7, 2, -1, CONFIG["vocab_size"], 10**30]  # some have no token: never drawn
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert DecoderConfig.from_path(tmp_path).eos_token_ids == (2, 7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not served; 'silu' and 'swish' are"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types 'chunked_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is not set"),
        ({"layer_types": ["full_attention"]}, "2 layers have 1 attention windows"),
        (GEMMA | {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        (GEMMA | {"attn_logit_softcapping": 0.0}, "soft cap of 0.0"),
        (FALCON | {"alibi": True}, "alibi"),
        (FALCON | {"activation": "relu"}, "^activation 'relu'"),
        (FALCON | {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn False"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding window of 0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"is_causal": False}, "is_causal false"),
        ({"per_layer_config": {"0": {"sliding_window": 8}}}, "per_layer_config"),
        ({"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "rope_type 'su'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope_type .*linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear'.*`factor`"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "rope_type 'linear'.*factor"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic'.*`factor`"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_type 'default'.*`full_attention`"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}},
            "rope_type 'yarn'.*original_max_position",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": "1"}},
            "yarn.*int",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'.*`factor`"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": -1.0}}, "mscale"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e308}}, "beta_fast"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 1e-320}}, "beta_slow"),
        ({"rope_parameters": LLAMA3_ROPE | {"factor": None}}, r"rope_type 'llama3'.*\$\.factor"),
        ({"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor 1.0"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"num_attention_heads": 5}, "5 attention heads"),
        ({"num_attention_heads": 0}, "heads 0 is not positive"),
        ({"head_dim": 7}, "head size 7"),
        ({"head_dim": 10**9}, "head size 1000000000"),
        ({"head_dim": 10**400}, "head_dim"),
        ({"model_type": "mistral", "sliding_window": 2**63}, "sliding_window"),
        ({"num_hidden_layers": -1}, "layers -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": 0.0}, "epsilon 0.0"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read(tmp_path, **changes)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a model directory nor"):
        DecoderConfig.from_path(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        DecoderConfig.from_path(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        DecoderConfig.from_path(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text('{"x":' + "[" * 100_000)
    with pytest.raises(ModelError, match="recursion"):
        DecoderConfig.from_path(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:-1])
    with pytest.raises(ModelError, match=r"config\.json"):
        DecoderConfig.from_path(tmp_path)
    (tmp_path / "config.json").write_text(" " * (1 << 20) + json.dumps(CONFIG))
    with pytest.raises(ModelError, match="larger than"):
        DecoderConfig.from_path(tmp_path)
