"""GGUF files written by the gguf package, and damaged ones."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from openlora.node.engine.gguf_file import GgufFile, hf_name
from openlora.node.engine.loader import load_weights
from openlora.node.engine.models import rope
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ModelError
from tests.node.engine.tiny import CONFIG, random_tensors, write_config

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{GGUF_NAMES[module]}.{kind}"
    layer, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"


def pairs_side_by_side(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the query and key weights of `llama` models."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, tensors: dict[str, torch.Tensor], family: str, **metadata: object) -> Path:
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_eos_token_id(2)
    for key, value in metadata.items():
        adds = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        adds |= {str: writer.add_string, list: writer.add_array}
        adds[type(value)](key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_gguf(directory: Path, family: str, **metadata: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file, and the tensors that it holds under their Hugging Face names."""
    tensors = random_tensors(DecoderConfig.from_path(write_config(directory, model_type=family)))
    stored = {}
    for name, tensor in tensors.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if family == "llama" else None
        stored[gguf_name(name)] = tensor if heads is None else pairs_side_by_side(tensor, heads)
    return write_gguf(directory / "tiny.gguf", stored, family, **metadata), tensors


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_reads_the_same_model_as_from_a_directory(tmp_path: Path, family: str) -> None:
    path, tensors = tiny_gguf(tmp_path, family)
    config = DecoderConfig.from_path(path)
    stored_eps = float(np.float32(1e-5))
    assert config == replace(DecoderConfig.from_path(tmp_path), norm_eps=stored_eps)
    weights = load_weights(path, config, "float32")
    assert torch.equal(weights.embedding, tensors["model.embed_tokens.weight"])
    for layer, found in enumerate(weights.layers):
        for projection in (found.qkv, found.o, found.gate_up, found.down):
            for name, rows in projection.parts:
                assert torch.equal(projection.weight[rows], tensors[f"{name}.weight"]), name
                if projection.bias is not None:
                    assert torch.equal(projection.bias[rows], tensors[f"{name}.bias"]), name
        norm = tensors[f"model.layers.{layer}.post_attention_layernorm.weight"]
        assert torch.equal(found.mlp_norm.weight, norm)
        if found.q_norm is not None:
            assert torch.equal(found.q_norm.weight, tensors[f"model.layers.{layer}.self_attn.q_norm.weight"])


def test_rope_factors_are_divisors(tmp_path: Path) -> None:
    plain = rope.plain(10_000.0, 8)
    scaled = rope.llama3(plain, 8.0, 1.0, 4.0, 64)
    factors = torch.from_numpy(plain / scaled)
    path = write_gguf(tmp_path / "x.gguf", {"rope_freqs.weight": factors}, "llama")
    found = GgufFile(path)
    assert found.shape("rope_freqs.weight") == (4,)
    path, _ = tiny_gguf(tmp_path, "llama")
    stored = {t.name: torch.from_numpy(np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
    path = write_gguf(tmp_path / "y.gguf", stored | {"rope_freqs.weight": factors}, "llama")
    config = DecoderConfig.from_path(path)
    assert config.rope_frequencies == pytest.approx(scaled, rel=1e-6)
    load_weights(path, config, "float32")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"llama.rope.dimension_count": 4}, "partial rotation"),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor 4.0"),
        ({"llama.rope.scale_linear": 2.0}, "rope.scale_linear 2.0"),
        ({"llama.attention.causal": False}, "attention.causal False"),
        ({"llama.attention.scale": 0.5}, "attention.scale 0.5"),
        ({"split.count": 2}, "split over several files"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, object], named: str
) -> None:
    path, _ = tiny_gguf(tmp_path, "llama", **metadata)
    with pytest.raises(ModelError, match=named):
        DecoderConfig.from_path(path)


def test_what_does_nothing_is_passed_over(tmp_path: Path) -> None:
    plain = DecoderConfig.from_path(tiny_gguf(tmp_path, "llama")[0])
    neutral = {"llama.rope.scaling.factor": 1.0, "llama.rope.scale_linear": 0.0, "llama.attention.causal": True}
    assert DecoderConfig.from_path(tiny_gguf(tmp_path, "llama", **neutral)[0]) == plain


def test_mistrals_window_is_every_layers_and_anothers_is_refused(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path, "llama", **{"llama.attention.sliding_window": 4096})
    assert DecoderConfig.from_path(path).windows == (4096, 4096)
    path, _ = tiny_gguf(tmp_path, "qwen2", **{"qwen2.attention.sliding_window": 4096})
    with pytest.raises(ModelError, match="sliding_window"):
        DecoderConfig.from_path(path)


@pytest.mark.parametrize("family", ["mamba", "gemma", "gemma2", "falcon"])
def test_other_architectures_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(ModelError, match=rf"general\.architecture '{family}'"):
        DecoderConfig.from_path(write_gguf(tmp_path / "x.gguf", {}, family))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path, "llama")
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(data) - 64, len(data) // 60), len(data) - 64]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError):
            load_weights(cut, DecoderConfig.from_path(cut), "float32")


def test_an_offset_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path, "llama")
    data = bytearray(path.read_bytes())
    entry = data.index(b"output_norm.weight") + len(b"output_norm.weight")
    offset_at = entry + 4 + 8 + 4  # dimensions, one length, type
    for offset in (len(data) // 32 * 32, 1 << 40, (1 << 63) + 32):
        data[offset_at : offset_at + 8] = offset.to_bytes(8, "little")
        (tmp_path / "far.gguf").write_bytes(data)
        with pytest.raises(ModelError):
            load_weights(tmp_path / "far.gguf", DecoderConfig.from_path(tmp_path / "far.gguf"), "float32")


@pytest.mark.parametrize(
    ("key", "after", "value", "named"),
    [
        (b"llama.block_count", 4, b"\xff\xff\xff\xff", "block_count 4294967295"),
        (b"general.architecture", 4 + 8, b"llam\xf3", "not UTF-8"),
    ],
)
def test_metadata_that_no_model_has(tmp_path: Path, key: bytes, after: int, value: bytes, named: str) -> None:
    """`after`: the bytes of the value's type, and of a text's length."""
    path, _ = tiny_gguf(tmp_path, "llama")
    data = bytearray(path.read_bytes())
    start = data.index(key) + len(key) + after
    data[start : start + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ModelError, match=named):
        DecoderConfig.from_path(path)


def test_names_we_do_not_know_stay_and_are_refused(tmp_path: Path) -> None:
    assert hf_name("blk.1.attn_q.weight") == "model.layers.1.self_attn.q_proj.weight"
    assert hf_name("blk.1.attn_sinks.weight") == "blk.1.attn_sinks.weight"
    assert hf_name("output.weight") == "lm_head.weight"
    path, _ = tiny_gguf(tmp_path, "llama")
    stored = {t.name: torch.from_numpy(np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
    path = write_gguf(tmp_path / "y.gguf", stored | {"blk.0.attn_sinks.weight": torch.ones(8)}, "llama")
    with pytest.raises(ModelError, match="attn_sinks"):
        load_weights(path, DecoderConfig.from_path(path), "float32")


def test_metadata_of_the_wrong_kind(tmp_path: Path) -> None:
    file = GgufFile(tiny_gguf(tmp_path, "llama", **{"x.list": [1, 2]})[0])
    assert file.value("llama.context_length", int) == CONFIG["max_position_embeddings"]
    with pytest.raises(ModelError, match="missing"):
        file.value("absent", int)
    with pytest.raises(ModelError, match="not a single int"):
        file.value("x.list", int)
    with pytest.raises(ModelError, match="not a single str"):
        file.value("llama.context_length", str)
