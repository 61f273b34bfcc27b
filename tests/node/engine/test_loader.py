"""Checkpoints: complete, exact, and nothing but the model's."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openlora.node.engine.loader import load_weights
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ModelError
from tests.node.engine.tiny import random_tensors, write_config, write_model


def test_stacks_what_shares_an_input(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_model(tmp_path, model_type="qwen2"))
    weights = load_weights(tmp_path, config, "float32")
    tensors = random_tensors(config)
    qkv = weights.layers[1].qkv
    assert [name for name, _ in qkv.parts] == [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]
    for name, rows in qkv.parts:
        assert torch.equal(qkv.weight[rows], tensors[f"{name}.weight"])
        assert qkv.bias is not None
        assert torch.equal(qkv.bias[rows], tensors[f"{name}.bias"])
    assert weights.layers[0].gate_up.bias is None


def test_a_tied_head_shares_the_embeddings_memory(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_model(tmp_path, tie_word_embeddings=True))
    weights = load_weights(tmp_path, config, "float32")
    assert weights.head.weight.data_ptr() == weights.embedding.data_ptr()


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_model(tmp_path))
    assert load_weights(tmp_path, config, "float32").embedding.dtype == torch.float32
    assert load_weights(tmp_path, config, "bfloat16").embedding.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype 'int3'"):
        load_weights(tmp_path, config, "int3")


def test_sharded_checkpoints(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path))
    tensors = random_tensors(config)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: file for file, part in shards.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = load_weights(tmp_path, config, "float32")
    assert torch.equal(loaded.norm.weight, tensors["model.norm.weight"])

    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="no file of this directory"):
        load_weights(tmp_path, config, "float32")
    for wrong, why in (("absent.safetensors", "no such file"), ("a\0.safetensors", "no file of this directory")):
        index.write_text(json.dumps({"weight_map": weight_map | {names[0]: wrong}}))
        with pytest.raises(ModelError, match=why):
            load_weights(tmp_path, config, "float32")
    index.write_text('{"metadata":' + "[" * 100_000)
    with pytest.raises(ModelError, match="recursion"):
        load_weights(tmp_path, config, "float32")
    save_file(tensors, tmp_path / "b.safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="another file too"):
        load_weights(tmp_path, config, "float32")


def test_a_single_file_stands_above_an_index(tmp_path: Path) -> None:
    """The model's id is that file's too: weights of others would answer in its name."""
    config = DecoderConfig.from_path(write_model(tmp_path, seed=1))
    stale = random_tensors(config, seed=2)
    save_file(stale, tmp_path / "old.safetensors")
    weight_map = dict.fromkeys(stale, "old.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_weights(tmp_path, config, "float32")
    assert torch.equal(loaded.norm.weight, random_tensors(config, seed=1)["model.norm.weight"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.norm.weight": None}, "lacks 1 tensors.*model.norm.weight"),
        ({"model.norm.weight": torch.ones(31)}, r"model.norm.weight.*\(31,\), not \(32,\)"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int64)}, "is I64"),
        ({"model.norm.weight": torch.tensor([1.0] * 31 + [-torch.inf])}, "model.norm.weight.*NaN or Inf"),
        ({"model.layers.1.mlp.up_proj.weight": torch.full((48, 32), torch.nan)}, "layers.1.mlp.up_proj.*NaN"),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}, "not of this model.*layers.2"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "not of this model.*q_proj.bias"),
    ],
)
def test_a_checkpoint_must_be_exact(tmp_path: Path, change: dict[str, torch.Tensor | None], named: str) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path))
    tensors = {name: tensor for name, tensor in (random_tensors(config) | change).items() if tensor is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=named):
        load_weights(tmp_path, config, "float32")


def test_old_rotary_buffers_and_a_tied_heads_copy_do_no_harm(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path, tie_word_embeddings=True))
    tensors = random_tensors(config)
    head = tensors["model.embed_tokens.weight"].clone()
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": head}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    load_weights(tmp_path, config, "float32")


def test_a_head_that_is_not_the_one_it_is_said_to_be_tied_to_is_refused(tmp_path: Path) -> None:
    """transformers serves it, and not the embedding."""
    config = DecoderConfig.from_path(write_config(tmp_path, tie_word_embeddings=True))
    save_file(random_tensors(config) | {"lm_head.weight": torch.ones(97, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_weights(tmp_path, config, "float32")


def test_numbers_that_the_dtype_has_not_are_refused(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path))
    tensors = random_tensors(config)
    tensors["model.embed_tokens.weight"][3, 5] = 3.4e38
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(tmp_path, config, "float32")
    with pytest.raises(ModelError, match=r"embed_tokens.*beyond torch"):
        load_weights(tmp_path, config, "bfloat16")


def test_a_broken_or_absent_file_is_a_model_error(tmp_path: Path) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file.*never from pickles"):
        load_weights(tmp_path, config, "float32")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        load_weights(tmp_path, config, "float32")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_weights(tmp_path, config, "float32")
