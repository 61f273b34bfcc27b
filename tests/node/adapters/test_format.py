"""What a good adapter becomes; the bad ones are in test_hostile."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.node.adapters.format import LinearShape, RawTensor, largest_magnitude, read_adapter
from openlora.node.adapters.modules import EmbeddingShape
from openlora.node.adapters.safetensors import Dtype, parse_tensors
from openlora.node.errors import AdapterError
from tests.node.adapters.adapter_files import (
    BIASED_LAYOUT,
    DOWN,
    EMBEDDING,
    HEAD,
    LAYER_NORM,
    LAYOUT,
    NORM,
    RANK,
    TRAINED_ROWS,
    WHOLE_LAYOUT,
    Arrays,
    K,
    Q,
    arrays,
    biases,
    config,
    container,
    embedding_arrays,
    key_of,
    keys,
    magnitudes,
    weights,
    write_adapter,
)


def array(tensor: RawTensor) -> Any:
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    return np.frombuffer(tensor.data, dtypes[tensor.dtype]).reshape(tensor.shape)


def test_a_good_adapter(tmp_path: Path) -> None:
    tensors = arrays()
    adapter = read_adapter(write_adapter(tmp_path), LAYOUT)
    assert adapter.rank == RANK
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert adapter.factors.keys() == LAYOUT.keys()
    for module, factor in adapter.factors.items():
        a, b = keys(module)
        assert np.array_equal(array(factor.a), tensors[a])
        assert np.array_equal(array(factor.b), tensors[b])
        assert factor.scale == 2.0
        assert factor.a.data.readonly


@pytest.mark.parametrize(("dtype", "name"), [("<f4", "F32"), ("<f2", "F16"), ("<u2", "BF16")])
def test_each_dtype(tmp_path: Path, dtype: str, name: str) -> None:
    tensors = (
        arrays(dtype=dtype) if dtype != "<u2" else {k: np.full(v.shape, 0x3F80, dtype) for k, v in arrays().items()}
    )
    factor = read_adapter(write_adapter(tmp_path, safetensors=weights(tensors)), LAYOUT).factors[Q]
    assert (factor.a.dtype, factor.b.dtype) == (name, name)
    assert np.array_equal(array(factor.a), tensors[keys(Q)[0]])


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    adapter = read_adapter(write_adapter(tmp_path, config(use_rslora=True)), LAYOUT)
    assert adapter.factors[Q].scale == 8 / math.sqrt(RANK)


def test_patterns_apply_to_what_they_name_and_the_first_counts(tmp_path: Path) -> None:
    tensors = arrays()
    a, b = keys(DOWN)
    tensors[a], tensors[b] = np.ones((2, 20), "<f4"), np.ones((8, 2), "<f4")
    patterns = config(
        rank_pattern={"mlp.down_proj": 2},
        alpha_pattern={"layers.0.self_attn.q_proj": 1, "q_proj": 3.5},
    )
    adapter = read_adapter(write_adapter(tmp_path, patterns, weights(tensors)), LAYOUT)
    scales = {module: factor.scale for module, factor in adapter.factors.items()}
    assert scales == {Q: 1 / 4, DOWN: 8 / 2, "model.layers.1.self_attn.q_proj": 3.5 / 4}
    assert adapter.rank == 4
    assert adapter.factors[DOWN].a.shape == (2, 20)


def test_a_pattern_of_a_whole_name(tmp_path: Path) -> None:
    adapter = read_adapter(write_adapter(tmp_path, config(alpha_pattern={f"^{Q}": 1})), LAYOUT)
    assert {module for module, factor in adapter.factors.items() if factor.scale == 1 / 4} == {Q}


SECOND_Q = "model.layers.1.self_attn.q_proj"


def in_words(value: dict[str, Any] | set[str]) -> str:
    """Names for the cases; a set's own order differs between processes, for which pytest-xdist refuses the run."""
    return str(value if isinstance(value, dict) else sorted(value))


@pytest.mark.parametrize(
    ("changes", "targeted"),
    [
        ({"layers_to_transform": 0}, {Q, DOWN}),
        ({"layers_to_transform": [1, 5]}, {SECOND_Q}),
        ({"layers_to_transform": [1], "target_modules": [DOWN, "q_proj"]}, {DOWN, SECOND_Q}),  # a whole name counts
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, {SECOND_Q}),
        ({"layers_to_transform": [0], "layers_pattern": ["h", "model.layers"]}, {Q, DOWN}),
        ({"layers_to_transform": [], "layers_pattern": ""}, {Q, DOWN, SECOND_Q}),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, {DOWN, SECOND_Q}),
        ({"exclude_modules": ["proj"]}, {Q, DOWN, SECOND_Q}),
        ({"target_modules": "all-linear"}, {Q, DOWN, SECOND_Q}),
        ({"target_modules": "All-Linear", "exclude_modules": ["q_proj"]}, {DOWN}),
        ({"modules_to_save": ["down_proj"]}, {Q, SECOND_Q}),
    ],
    ids=in_words,
)
def test_which_layers_are_meant(tmp_path: Path, changes: dict[str, Any], targeted: set[str]) -> None:
    tensors = {key: value for key, value in arrays().items() if any(module in key for module in targeted)}
    if "modules_to_save" in changes:
        tensors[key_of(DOWN, "weight")] = np.ones((8, 20), "<f4")
    adapter = read_adapter(write_adapter(tmp_path, config(**changes), weights(tensors)), WHOLE_LAYOUT)
    assert adapter.factors.keys() == targeted


EXPONENTIAL = "(([a-z_0-9.])+)+X"  # minutes, if it were run on one module's name


@pytest.mark.parametrize(
    ("changes", "targeted"),
    [
        ({"target_modules": EXPONENTIAL}, {Q, DOWN}),
        ({"target_modules": EXPONENTIAL, "exclude_modules": [DOWN]}, {Q, SECOND_Q}),
        ({"target_modules": EXPONENTIAL, "exclude_modules": EXPONENTIAL}, {DOWN}),
        ({"exclude_modules": EXPONENTIAL}, {Q, DOWN}),
        ({"exclude_modules": EXPONENTIAL, "target_modules": "all-linear"}, {SECOND_Q}),
        ({"exclude_modules": EXPONENTIAL, "layers_to_transform": 0}, {DOWN}),
    ],
    ids=in_words,
)
def test_where_a_pattern_chooses_the_tensors_say_which_layers(
    tmp_path: Path, changes: dict[str, Any], targeted: set[str]
) -> None:
    tensors = {key: value for key, value in arrays().items() if any(module in key for module in targeted)}
    adapter = read_adapter(write_adapter(tmp_path, config(**changes), weights(tensors)), WHOLE_LAYOUT)
    assert adapter.factors.keys() == targeted


@pytest.mark.parametrize(
    ("changes", "tensors", "named"),
    [
        ({}, {key: value for key, value in arrays().items() if key != keys(Q)[1]}, "q_proj.lora_B.weight' is missing"),
        (
            {},
            arrays() | {keys("visual.q_proj")[0]: np.ones((RANK, 8), "<f4")},
            "'base_model.model.visual.* of this base",
        ),
        ({}, {key_of(NORM, "weight"): np.ones(8, "<f4")}, "model.norm.weight' belongs to no layer of this base"),
        ({"modules_to_save": [NORM]}, {key_of(NORM, "weight"): np.ones(8, "<f4")}, "holds no A and B"),
        ({"exclude_modules": ["down_proj"]}, arrays(), "down_proj.lora_A.weight' belongs to no layer"),
        ({"use_dora": True}, arrays(), "lora_magnitude_vector' is missing"),
        ({"layers_to_transform": 0}, arrays(), "layers_to_transform needs a list of target_modules"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pattern_excuses_nothing_else(tmp_path: Path, changes: dict[str, Any], tensors: Any, named: str) -> None:
    folder = write_adapter(tmp_path, config(target_modules=EXPONENTIAL, **changes), weights(tensors))
    with pytest.raises(AdapterError, match=named):
        read_adapter(folder, WHOLE_LAYOUT)


def test_dora_has_magnitudes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, config(use_dora=True), weights(arrays() | magnitudes()))
    adapter = read_adapter(folder, LAYOUT)
    assert [len(factor.tensors) for factor in adapter.factors.values()] == [3, 3, 3]
    assert adapter.nbytes == sum(array.nbytes for array in (arrays() | magnitudes()).values())


def test_each_b_may_have_a_bias(tmp_path: Path) -> None:
    tensors = arrays() | biases()
    plain = read_adapter(write_adapter(tmp_path / "plain"), LAYOUT)
    adapter = read_adapter(write_adapter(tmp_path / "biased", config(lora_bias=True), weights(tensors)), LAYOUT)
    assert {module: factor.bias.shape for module, factor in adapter.factors.items() if factor.bias is not None} == {
        module: (shape.out_features,) for module, shape in LAYOUT.items()
    }
    assert adapter.nbytes == sum(array.nbytes for array in tensors.values())
    stretched = weights(arrays() | magnitudes())  # the same numbers
    dora = read_adapter(write_adapter(tmp_path / "dora", config(use_dora=True), stretched), LAYOUT)
    assert len({plain.digest(), adapter.digest(), dora.digest()}) == 3


TRAINED_BIASES = {key_of(Q, "base_layer.bias"): np.ones(12, "<f4"), key_of(K, "bias"): np.ones(4, "<f4")}


@pytest.mark.parametrize(
    ("changes", "tensors", "found"),
    [
        ({"bias": "all"}, TRAINED_BIASES, {Q, K}),
        ({"bias": "lora_only"}, {key_of(Q, "base_layer.bias"): np.ones(12, "<f4")}, {Q}),
        ({"modules_to_save": ["k_proj"]}, TRAINED_BIASES | {key_of(K, "weight"): np.ones((4, 8), "<f4")}, {Q, K}),
    ],
)
def test_trained_biases_stand_in_the_place_of_the_bases(
    tmp_path: Path, changes: dict[str, Any], tensors: Arrays, found: set[str]
) -> None:
    all_tensors = arrays() | tensors
    adapter = read_adapter(write_adapter(tmp_path / "a", config(**changes), weights(all_tensors)), BIASED_LAYOUT)
    assert adapter.biases.keys() == found
    assert adapter.nbytes == sum(array.nbytes for array in all_tensors.values())
    other = {name: array + 1 if name.endswith("bias") else array for name, array in all_tensors.items()}
    assert (
        adapter.digest()
        != read_adapter(write_adapter(tmp_path / "b", config(**changes), weights(other)), BIASED_LAYOUT).digest()
    )


@pytest.mark.parametrize(
    ("changes", "tensors", "reason"),
    [
        ({}, {key_of(Q, "base_layer.bias"): np.ones(11, "<f4")}, r"has shape \(11,\), not \(12,\)"),
        ({}, {key_of(K, "bias"): np.full(4, math.nan, "<f4")}, "NaN or Inf"),
        ({}, {key_of(K, "bias"): np.full(4, 1e38, "<f4")}, "overflows bfloat16"),
        ({}, {key_of(Q, "bias"): np.ones(12, "<f4")}, "q_proj.bias' is no bias of a linear layer"),
        ({}, {key_of(NORM, "bias"): np.ones(8, "<f4")}, "norm.bias' is no bias of a linear layer"),
        (
            {"modules_to_save": ["k_proj"]},
            {key_of(K, "weight"): np.ones((4, 8), "<f4")},
            "k_proj.bias' is missing",
        ),
    ],
)
def test_biases_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], tensors: Arrays, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_adapter(write_adapter(tmp_path, config(**changes), weights(arrays() | tensors)), BIASED_LAYOUT)


@pytest.mark.parametrize("magnitude", ["lora_magnitude_vector.default.weight", "lora_magnitude_vector.weight"])
def test_a_models_own_names_of_its_default_adapter_are_taken_as_in_peft(tmp_path: Path, magnitude: str) -> None:
    tensors = arrays() | embedding_arrays() | magnitudes()
    tensors[key_of(EMBEDDING, "lora_magnitude_vector")] = np.ones(8, "<f4")
    named = {
        re.sub(r"(lora_[AB])\b", r"\1.default", re.sub(r"(lora_embedding_[AB])$", r"\1.default", name)).replace(
            "lora_magnitude_vector", magnitude
        ): tensor
        for name, tensor in tensors.items()
    }
    options = config(use_dora=True, target_modules=["q_proj", "down_proj", "embed_tokens"])
    saved = read_adapter(write_adapter(tmp_path / "saved", options, weights(tensors)), WHOLE_LAYOUT)
    other = read_adapter(write_adapter(tmp_path / "other", options, weights(named)), WHOLE_LAYOUT)
    twice = read_adapter(write_adapter(tmp_path / "twice", options, weights(tensors | named)), WHOLE_LAYOUT)
    assert not named.keys() & tensors.keys()
    assert other.digest() == twice.digest() == saved.digest()


def test_an_embeddings_factors_and_the_copy_that_peft_stores(tmp_path: Path) -> None:
    copy = {
        key_of(EMBEDDING, "base_layer.weight"): np.ones((10, 8), "<f4"),
        key_of(HEAD, "weight"): np.ones((10, 8), "<f4"),
    }
    changed = arrays() | embedding_arrays()
    targets = config(target_modules=["q_proj", "down_proj", "embed_tokens"])
    adapter = read_adapter(write_adapter(tmp_path, targets, weights(changed | copy)), WHOLE_LAYOUT)
    assert adapter.factors[EMBEDDING].a.shape == (RANK, 10)
    assert adapter.copies.keys() == {EMBEDDING, HEAD}
    assert adapter.nbytes == sum(array.nbytes for array in changed.values())


ROWS = key_of(EMBEDDING, TRAINED_ROWS)


@pytest.mark.parametrize(
    ("changes", "needed", "added"),
    [
        (
            {"modules_to_save": ["embed_tokens"]},
            {key_of(EMBEDDING, "weight"): np.full((10, 8), 2, "<f4")},
            {
                key_of(EMBEDDING, "modules_to_save.weight"): np.full((10, 8), 2, "<f4"),
                key_of(EMBEDDING, "original_module.weight"): np.ones((10, 8), "<f4"),
            },
        ),
        (
            {"trainable_token_indices": [9, 0]},
            {ROWS: np.full((2, 8), 3, "<f4")},
            {
                key_of(HEAD, TRAINED_ROWS): np.full((2, 8), 3, "<f4"),
                key_of(EMBEDDING, "token_adapter.base_layer.weight"): np.ones((10, 8), "<f4"),
            },
        ),
        (
            {"modules_to_save": ["k_proj"], "bias": "all"},
            {key_of(K, "weight"): np.ones((4, 8), "<f4"), key_of(K, "bias"): np.ones(4, "<f4")},
            {
                key_of(K, "modules_to_save.bias"): np.ones(4, "<f4"),
                key_of(K, "original_module.bias"): np.zeros(4, "<f4"),
            },
        ),
    ],
)
def test_what_peft_writes_twice_is_taken_once_and_copies_of_the_base_beside_it(
    tmp_path: Path, changes: dict[str, Any], needed: Arrays, added: Arrays
) -> None:
    options, tensors = config(**changes), arrays() | needed
    without = read_adapter(write_adapter(tmp_path / "without", options, weights(tensors)), BIASED_LAYOUT)
    both = read_adapter(write_adapter(tmp_path / "both", options, weights(tensors | added)), BIASED_LAYOUT)
    assert (both.digest(), both.nbytes) == (without.digest(), without.nbytes)
    copied = {name for name in added if name.endswith(("base_layer.weight", "original_module.weight"))}
    assert len(both.copies) == len(copied)
    again = next(iter(added))
    other = write_adapter(tmp_path / "other", options, weights(tensors | added | {again: added[again] + 1}))
    with pytest.raises(AdapterError, match=r"is there twice, with other numbers|which are one weight, differ"):
        read_adapter(other, BIASED_LAYOUT)


def test_an_ending_names_every_norm_to_save(tmp_path: Path) -> None:
    saved = {key_of(NORM, "weight"): np.ones(8, "<f4"), key_of(LAYER_NORM, "weight"): np.ones(8, "<f4")}
    adapter = read_adapter(
        write_adapter(tmp_path, config(modules_to_save=["norm"]), weights(arrays() | saved)), WHOLE_LAYOUT
    )
    assert adapter.replaced.keys() == {NORM, LAYER_NORM}


def test_trained_tokens_bring_their_rows(tmp_path: Path) -> None:
    adapters, tensors = [], arrays() | {key_of(EMBEDDING, TRAINED_ROWS): np.ones((2, 8), "<f4")}
    for tokens in ([9, 0], {"embed_tokens": [0, 9]}):
        options = config(trainable_token_indices=tokens)
        adapters.append(read_adapter(write_adapter(tmp_path, options, weights(tensors)), WHOLE_LAYOUT))
        assert adapters[-1].nbytes == sum(array.nbytes for array in tensors.values())
    ((first,), (second,)) = (adapter.trained for adapter in adapters)
    assert (first.tokens, first.modules) == ((9, 0), (EMBEDDING, HEAD))
    assert second.tokens == (0, 9)
    assert adapters[0].digest() != adapters[1].digest()


@pytest.mark.parametrize(
    ("given", "tied", "changed"),
    [
        ({"lm_head": [9, 0]}, True, [(HEAD,)]),
        ({"lm_head": [9, 0]}, False, [(HEAD,)]),
        ({"embed_tokens": [9, 0], "lm_head": [9, 0]}, True, [(EMBEDDING, HEAD)]),
        ({"embed_tokens": [9, 0], "lm_head": [9, 0]}, False, [(EMBEDDING,), (HEAD,)]),
        ({EMBEDDING: [9, 0], "lm_head": [0, 9]}, True, [(EMBEDDING,), (HEAD,)]),
        ([9, 0], False, [(EMBEDDING,)]),
    ],
)
def test_a_tied_head_follows_the_embeddings_tokens_unless_it_has_others(
    tmp_path: Path, given: Any, tied: bool, changed: list[tuple[str, ...]]
) -> None:
    layout = WHOLE_LAYOUT | {EMBEDDING: EmbeddingShape(8, 10, tied)}
    rows = {key_of(modules[0], TRAINED_ROWS): np.ones((2, 8), "<f4") for modules in changed}
    folder = write_adapter(tmp_path, config(trainable_token_indices=given), weights(arrays() | rows))
    assert [one.modules for one in read_adapter(folder, layout).trained] == changed


def tied_factors() -> Arrays:
    """Of the embedding, and of the head the same transposed."""
    a, b = (np.random.default_rng(1).normal(size=shape).astype("<f4") for shape in ((RANK, 10), (8, RANK)))
    return {
        **dict(zip(embedding_arrays(), (a, b), strict=True)),
        **dict(zip(keys(HEAD), (np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)), strict=True)),
    }


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"target_modules": ["q_proj", "down_proj", "embed_tokens"]}, tied_factors()),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"]}, tied_factors()),
        ({"target_modules": "a pattern"}, tied_factors()),
        ({"modules_to_save": ["embed_tokens"]}, {key_of(end, "weight"): np.eye(10, 8) for end in (EMBEDDING, HEAD)}),
    ],
)
def test_ends_that_are_to_stay_tied_are_changed_together(
    tmp_path: Path, changes: dict[str, Any], tensors: Arrays
) -> None:
    tensors = {name: array.astype("<f4") for name, array in tensors.items()}
    options = config(ensure_weight_tying=True, **changes)
    adapter = read_adapter(write_adapter(tmp_path, options, weights(arrays() | tensors)), WHOLE_LAYOUT)
    assert {EMBEDDING, HEAD} <= adapter.factors.keys() | adapter.replaced.keys()
    tensors[key_of(HEAD, "lora_B.weight" if "target_modules" in changes else "weight")][3, 1] += 1
    with pytest.raises(AdapterError, match="changed apart"):
        read_adapter(write_adapter(tmp_path, options, weights(arrays() | tensors)), WHOLE_LAYOUT)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "down_proj", "q_proj", "proj", "query", "model.layers.7.mlp.down_proj"]},
        {"exclude_modules": ["o_proj", "o_proj"]},
        {"modules_to_save": ["score", "score", "classifier"]},
        {"rank_pattern": {"k_proj": 9, "^q_proj": 9}},
        {"alpha_pattern": {"k_proj": 9, "lm_head": 9}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"fan_in_fan_out": True},
        {"ensure_weight_tying": True},
    ],
    ids=in_words,
)
def test_what_means_nothing_for_this_base_is_passed_over_as_in_peft(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = read_adapter(write_adapter(tmp_path / "plain"), WHOLE_LAYOUT)
    adapter = read_adapter(write_adapter(tmp_path / "more", config(**changes)), WHOLE_LAYOUT)
    assert (adapter.rank, adapter.digest()) == (plain.rank, plain.digest())


@pytest.mark.parametrize("value", ["eva", "mica", "gaussian", "orthogonal", True, False])
def test_how_it_was_begun_does_not_matter_where_the_base_stayed(tmp_path: Path, value: Any) -> None:
    options = config(init_lora_weights=value, eva_config={"rho": 2.0})
    assert read_adapter(write_adapter(tmp_path, options), LAYOUT).rank == RANK


LLAMA = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}


@pytest.mark.parametrize(
    "changes",
    [
        {"task_type": None, "auto_mapping": LLAMA},  # what PEFT writes of a model that nobody gave a task
        {"auto_mapping": LLAMA | {"unsloth_fixed": True}},
        {"enable_lora": None, "merge_weights": False},  # PEFT before 0.3
        {"runtime_config": {"ephemeral_gpu_offload": False}},
        {"corda_config": {"corda_method": "ipm"}},  # saved by path_initial_model_for_weight_conversion
        {"lora_ga_config": {"scale": "stable"}, "loftq_config": {"loftq_bits": 4}},
    ],
)
def test_where_it_came_from_does_not_matter(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_adapter(write_adapter(tmp_path, config(**changes)), LAYOUT).rank == RANK


def test_only_what_is_targeted_is_needed(tmp_path: Path) -> None:
    tensors = {key: value for key, value in arrays().items() if DOWN in key}
    adapter = read_adapter(write_adapter(tmp_path, config(target_modules=[DOWN]), weights(tensors)), LAYOUT)
    assert adapter.factors.keys() == {DOWN}


def test_a_target_is_a_whole_name_not_an_ending(tmp_path: Path) -> None:
    layout = LAYOUT | {"model.layers.0.self_attn.other_q_proj": LinearShape(12, 8)}
    assert read_adapter(write_adapter(tmp_path), layout).factors.keys() == LAYOUT.keys()


def test_the_least_configuration(tmp_path: Path) -> None:
    least = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4.5, "target_modules": ["q_proj", "down_proj"]}
    assert read_adapter(write_adapter(tmp_path, least), LAYOUT).factors[Q].scale == 4.5 / RANK


def test_the_layers_may_be_empty_handed_but_not_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no linear layer"):
        read_adapter(write_adapter(tmp_path), {})


def test_ranks_1_and_256(tmp_path: Path) -> None:
    for rank in (1, 256):
        folder = write_adapter(tmp_path / str(rank), config(r=rank), weights(arrays(rank)))
        assert read_adapter(folder, LAYOUT).rank == rank


def test_the_largest_scaled_number_is_accepted_and_the_next_is_not(tmp_path: Path) -> None:
    largest_bfloat16 = np.float32(3.3895313892515355e38)
    a, b = keys(Q)
    tensors = arrays()
    tensors[a][0, 0] = -largest_bfloat16  # A is cast, not scaled
    tensors[b][0, 0] = largest_bfloat16 / 20  # scale 2, recipe weight up to 10
    read_adapter(write_adapter(tmp_path / "fits", safetensors=weights(tensors)), LAYOUT)
    tensors[b][0, 0] = largest_bfloat16 / 19
    with pytest.raises(AdapterError, match="overflows bfloat16"):
        read_adapter(write_adapter(tmp_path / "too large", safetensors=weights(tensors)), LAYOUT)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from(["F32", "F16", "BF16"]))
def test_the_largest_magnitude_is_the_maximum(values: list[float], dtype: Dtype) -> None:
    stored = np.array(values, "<f4")
    if dtype == "F16":
        with np.errstate(over="ignore"):
            stored = stored.astype("<f2")
    if dtype == "BF16":
        stored = (stored.view("<u4") & 0xFFFF0000).view("<f4")
    bits = (stored.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else stored
    tensor = RawTensor(dtype, (1, len(values)), memoryview(bits.tobytes()))
    assert largest_magnitude(tensor) == np.abs(stored).max()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_poisoned_number_is_found_anywhere(dtype: Dtype, poison: float) -> None:
    values = np.ones((1 << 20) + 3, "<f4" if dtype == "F32" else "<f2")
    for at in (0, 1 << 20, -1):
        poisoned = values.copy()
        poisoned[at] = poison
        assert not math.isfinite(largest_magnitude(RawTensor(dtype, (1, len(values)), memoryview(poisoned.tobytes()))))


@given(st.binary(max_size=300))
def test_any_bytes_are_tensors_or_refused(contents: bytes) -> None:
    try:
        parse_tensors(memoryview(contents), "file")
    except AdapterError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(config())), json_values)
@settings(max_examples=150)
def test_any_value_of_any_key_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    folder = write_adapter(tmp_path_factory.getbasetemp() / "any value", config(**{key: value}))
    try:
        reason = f"rank {read_adapter(folder, LAYOUT).rank}"
    except AdapterError as error:
        reason = str(error)
    assert reason == f"rank {RANK}" or reason.startswith("adapter_")
    assert reason.isprintable()
    assert reason.isascii()


@given(st.sampled_from(["dtype", "shape", "data_offsets"]), json_values)
def test_any_value_in_a_header_is_refused(key: str, value: Any) -> None:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    if entry[key] == value:
        return
    with pytest.raises(AdapterError):
        parse_tensors(memoryview(container({"tensor": entry | {key: value}}, bytes(16))), "file")


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=200)
def test_any_bytes_changed_are_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, in_config: bool, changes: list[tuple[int, int]]
) -> None:
    files = [bytearray(json.dumps(config()).encode()), bytearray(weights())]
    target = files[not in_config]
    for at, byte in changes:
        target[at % len(target)] = byte
    folder = write_adapter(tmp_path_factory.getbasetemp() / "any bytes", bytes(files[0]), bytes(files[1]))
    try:
        adapter = read_adapter(folder, LAYOUT)
    except AdapterError:
        return
    assert adapter.rank == RANK
    assert all(
        math.isfinite(largest_magnitude(f.a) + largest_magnitude(f.b) + f.scale) for f in adapter.factors.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 7}}]
)
def test_effects_equal_pefts(tmp_path: Path, options: dict[str, Any]) -> None:
    """The oracle: PEFT writes and applies the adapter, we read it and compute s·B·A·x ourselves."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"q_proj": LinearShape(12, 8), "v_proj": LinearShape(6, 8)}
    model = torch.nn.ModuleDict({name: torch.nn.Linear(s.in_features, s.out_features) for name, s in sizes.items()})
    chosen = LoraConfig(r=4, lora_alpha=9, target_modules=["q_proj", "v_proj"], task_type=None, **options)
    adapted = get_peft_model(model, chosen)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"auto_mapping": None}))
    adapter = read_adapter(tmp_path, sizes)
    x = torch.randn(8)
    for name, factor in adapter.factors.items():
        layer = adapted.base_model.model[name]
        expected = layer(x) - layer.base_layer(x)
        ours = factor.scale * (array(factor.b) @ (array(factor.a) @ x.numpy()))
        assert np.allclose(ours, expected.detach().numpy(), atol=1e-5)
