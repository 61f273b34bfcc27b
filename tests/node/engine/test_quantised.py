"""Base weights of fewer bits in the compiled decoder, on every instruction set, and from GGUF's own blocks."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.quantised import dequantise
from openlora.kernels.types import CodedWeight, Int8Weight
from openlora.node.engine.engine import Engine, ScoreRequest
from openlora.node.engine.gguf_file import GgufFile
from openlora.node.engine.loader import load_weights
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, Projection, with_projections
from openlora.node.engine.runner import OpsRunner
from openlora.node.engine.runners import best_runner
from openlora.node.errors import ModelError
from tests.node.engine.compared import (
    ENGLISH,
    INSTRUCTIONS,
    LIMITS,
    MODEL,
    assert_as_near_as_bfloat16,
    compiled,
    divergence,
    load_adapters,
    logits_of,
    request,
    some_requests,
    widened,
)
from tests.node.engine.tiny import write_model
from tests.node.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers that bfloat16 holds, so that every dtype rounds the same ones."""
    path = write_model(tmp_path_factory.mktemp("model"), **MODEL)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors")
    return path


def reference(model: Path, form: str, dtype: str) -> OpsRunner:
    config, ops = DecoderConfig.from_path(model), Ops(BACKENDS["reference"])
    return OpsRunner(Decoder(config, load_weights(model, config, dtype, form), ops), ops, LIMITS.pages, 16)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_equals_the_reference_on_every_instruction_set(model: Path, kernels: Path, form: str) -> None:
    exact, rounded = (reference(model, form, dtype) for dtype in ("float32", "bfloat16"))
    load_adapters([exact, rounded], model, "mixed")
    expected = [logits_of(runner, some_requests(33, "distinct")) for runner in (exact, rounded)]
    for instructions in INSTRUCTIONS:
        runner = compiled(model, kernels, instructions, form=form)
        load_adapters([runner], model, "mixed")
        assert_as_near_as_bfloat16(logits_of(runner, some_requests(33, "distinct")), *expected)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_row_is_the_same_in_any_company(model: Path, kernels: Path, instructions: str, form: str) -> None:
    together, alone = (compiled(model, kernels, instructions, threads, form) for threads in (2, 1))
    load_adapters([together, alone], model, "mixed")
    crowd = logits_of(together, some_requests(37, "uniform"))
    for i in (0, 5, 13, 36):
        assert torch.equal(logits_of(alone, some_requests(37, "uniform")[i : i + 1])[0], crowd[i]), i


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_sum_that_32_bits_do_not_hold(tmp_path: Path, kernels: Path, instructions: str) -> None:
    """Inputs and codes that are all the largest: 4,200 products of 8,191 and 127."""
    path = write_model(tmp_path, **MODEL | {"intermediate_size": 4_200})
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    for name, tensor in tensors.items():
        if ".gate_proj." in name or ".up_proj." in name:
            tensor[:] = tensor[:1].clone()
        if name.endswith(".down_proj.weight"):
            tensor[:] = tensor[:, :1].clone() / 16
    save_file(tensors, path / "model.safetensors")
    runner, exact = compiled(path, kernels, instructions, form="int8"), reference(path, "int8", "float32")
    requests = some_requests(7, "distinct")
    for one in requests:
        one.adapters = ()
    assert divergence(logits_of(runner, requests), logits_of(exact, requests)) < 2e-4


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_what_is_not_finite_stays_in_its_row(model: Path, kernels: Path, form: str) -> None:
    runner = compiled(model, kernels, form=form)
    load_adapters([runner], model, 8)
    poisoned = some_requests(7, "distinct")
    poisoned[3].adapters = tuple((adapter, float("inf")) for adapter, _ in poisoned[2].adapters)
    assert poisoned[3].adapters
    clean, found = (logits_of(runner, requests) for requests in (some_requests(7, "distinct"), poisoned))
    assert not bool(found[3].isfinite().all())
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(
    ("bits", "group", "minima"), [(4, 16, True), (4, 48, False), (8, 16, True), (8, 32, False), (8, 1024, False)]
)
def test_codes_of_any_groups_equal_the_numbers_they_stand_for(
    model: Path, kernels: Path, instructions: str, bits: int, group: int, minima: bool
) -> None:
    rng = torch.Generator().manual_seed(group)
    config = DecoderConfig.from_path(model)
    weights = load_weights(model, config, "bfloat16")

    def coded(one: Projection) -> Projection:
        assert isinstance(one.weight, Tensor)
        out, inputs = one.weight.shape
        low, high = (0, 16) if minima and bits == 4 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        codes = torch.randint(low, high, (out, inputs), generator=rng, dtype=torch.int8)
        scales = torch.rand(out, -(-inputs // group), generator=rng) * 2 ** (2 - bits) * inputs**-0.5
        offsets = -scales * (low + high) / 2 if minima else None
        return replace(one, weight=CodedWeight(codes, scales, offsets, bits, group))

    def dense(one: Projection) -> Projection:
        return replace(one, weight=dequantise(one.weight))

    weights = with_projections(weights, coded)
    runner = compiled(model, kernels, instructions, weights=weights)
    ops, wide = Ops(BACKENDS["reference"]), widened(with_projections(weights, dense))
    exact = OpsRunner(Decoder(config, wide, ops), ops, LIMITS.pages, 16)
    requests = some_requests(7, "distinct")
    for one in requests:
        one.adapters = ()
    assert divergence(logits_of(runner, requests), logits_of(exact, requests)) < 2e-4


# ---- GGUF -----------------------------------------------------------------------------------------------------------

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FACTORS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # float16's places; else 0
HIDDEN = 256


def blocks_of(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random bytes, under factors that make weights of a sensible size."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    scale = {"Q8_0": 1 / 2000, "Q6_K": 1 / 30_000}.get(kind, 1 / 4000 if kind.endswith("K") else 1 / 100)
    for at in FACTORS.get(kind, (0,)):
        factors = rng.normal(size=(len(blocks), 1)).astype(np.float16) * np.float16(scale)
        blocks[:, at : at + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def write_gguf(path: Path, kinds: dict[str, str]) -> Path:
    """One layer whose matrices are of the kinds given by their names' last parts, "" for all others."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (97, HIDDEN)} | {f"blk.0.ffn_{name}": (HIDDEN, HIDDEN) for name in ("gate", "up", "down")}
    heads = {"q": 256, "k": 128, "v": 128, "output": 256}
    shapes |= {f"blk.0.attn_{name}": (rows, HIDDEN) for name, rows in heads.items()}
    for name, shape in shapes.items():
        kind = kinds.get(name, kinds[""])
        raw = blocks_of(kind, shape, rng)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=GGMLQuantizationType[kind])
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kind", [*KINDS, "Q4_K with Q6_K"])
def test_blocks_are_served_as_they_are_and_give_the_same_numbers(
    tmp_path: Path, kernels: Path, kind: str, instructions: str
) -> None:
    mixed = {"": "Q4_K", "blk.0.attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K"}
    path = write_gguf(tmp_path / "x.gguf", mixed if "with" in kind else {"": kind})
    kept = load_weights(path, DecoderConfig.from_path(path), "bfloat16")
    full = load_weights(path, DecoderConfig.from_path(path), "bfloat16", "full")
    (layer,), (dense,) = kept.layers, full.layers
    for one, other in ((layer.qkv, dense.qkv), (layer.down, dense.down), (kept.head, full.head)):
        assert isinstance(one.weight, CodedWeight)
        assert isinstance(other.weight, Tensor)
        assert torch.equal(dequantise(one.weight).bfloat16(), other.weight)
    requests = [request([3, 5, 7, 11, 13], []), request([2] * 20, [])]
    exact = logits_of(reference(path, "full", "float32"), requests)
    found, rounded = (
        logits_of(compiled(path, kernels, instructions, form=form), requests) for form in ("auto", "full")
    )
    assert bool(found.isfinite().all())
    if instructions == "amx":  # which unpacks them
        assert torch.equal(found, rounded)
    else:  # which multiplies them as integers
        assert_as_near_as_bfloat16(found, exact, rounded)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_K", "Q6_K"])
def test_a_row_of_blocks_is_the_same_in_any_company(
    tmp_path: Path, kernels: Path, instructions: str, kind: str
) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"": kind})
    together, alone = (compiled(path, kernels, instructions, threads) for threads in (2, 1))
    requests = [request([(7 * i + j) % 97 for j in range(2 + 5 * i % 31)], []) for i in range(37)]
    crowd = logits_of(together, requests)
    for i in (0, 5, 13, 36):
        requests[i].pages = []
        assert torch.equal(logits_of(alone, [requests[i]])[0], crowd[i]), i


def test_without_compiled_kernels_blocks_give_the_same_numbers(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf")
    config = DecoderConfig.from_path(path)
    requests = [request([3, 5, 7], []), request([2] * 9, [])]
    kept, full = (
        best_runner(config, load_weights(path, config, "bfloat16", form), LIMITS, None) for form in ("auto", "full")
    )
    assert torch.equal(logits_of(kept, requests), logits_of(full, requests))


def test_4_bit_blocks_stay_where_int4_is_wanted_and_others_are_rounded(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"": "Q4_1", "blk.0.ffn_down": "Q8_0"})
    (layer,) = load_weights(path, DecoderConfig.from_path(path), "bfloat16", "int4").layers
    assert isinstance(layer.o.weight, CodedWeight)
    assert isinstance(layer.down.weight, CodedWeight)
    assert layer.o.weight.minima is not None
    assert layer.down.weight.bits == 4


def test_float32_serves_the_numbers_themselves(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"": "Q4_0"})
    (layer,) = load_weights(path, DecoderConfig.from_path(path), "float32").layers
    assert isinstance(layer.down.weight, Tensor)


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"": "Q4_0"})
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_down.weight")
    raw = bytearray(path.read_bytes())
    raw[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=r"ffn_down.weight' has scales that are infinite or NaN"):
        GgufFile(path).codes("model.layers.0.mlp.down_proj.weight")


def test_a_form_that_is_unknown_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="weights 'int3' are not served; 'auto', 'full', 'int8', 'int4' are"):
        load_weights(model, DecoderConfig.from_path(model), "bfloat16", "int3")


def test_a_tied_head_is_rounded_and_the_embedding_is_not(tmp_path: Path) -> None:
    path = write_model(tmp_path, tie_word_embeddings=True)
    config = DecoderConfig.from_path(path)
    weights, full = (load_weights(path, config, "bfloat16", form) for form in ("int8", "auto"))
    assert isinstance(weights.head.weight, Int8Weight)
    assert torch.equal(weights.embedding, full.embedding)
    assert full.head.weight is full.embedding


# ---- the real model -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_int8_strays_little_from_float32(model_dir: Path, kernels: Path) -> None:
    """0.0049 over node/bench/quality.txt, whose perplexity is 21.53 then, beside 21.31."""
    transformers = pytest.importorskip("transformers")
    request = ScoreRequest(tuple(transformers.AutoTokenizer.from_pretrained(model_dir)(ENGLISH)["input_ids"]))
    (exact,) = Engine.load(model_dir, dtype="float32", limits=LIMITS).score([request])
    engine = Engine.load(model_dir, dtype="bfloat16", weights="int8", limits=LIMITS, cache_dir=kernels)
    (found,) = engine.score([request])
    assert engine.info.numbers == "bfloat16+int8"
    assert divergence(found, exact) <= 0.015
