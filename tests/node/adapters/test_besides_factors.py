"""What an adapter changes besides A and B: magnitudes, biases, the embedding and the head, whole weights, tokens."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openlora.node.adapters.format import read_adapter
from openlora.node.adapters.modules import EmbeddingShape
from openlora.node.errors import AdapterError
from tests.node.adapters.adapter_files import (
    BIASED_LAYOUT,
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
    embedding_arrays,
    key_of,
    keys,
    magnitudes,
    weights,
    write_adapter,
)


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
