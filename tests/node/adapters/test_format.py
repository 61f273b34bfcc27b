"""What a good adapter becomes; the bad ones are in test_hostile."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.node.adapters.bits import largest_magnitude
from openlora.node.adapters.format import read_adapter
from openlora.node.adapters.modules import LinearShape
from openlora.node.adapters.safetensors import RawTensor, parse_tensors
from openlora.node.errors import AdapterError
from tests.node.adapters.adapter_files import (
    DOWN,
    LAYOUT,
    NORM,
    RANK,
    WHOLE_LAYOUT,
    Q,
    arrays,
    config,
    container,
    key_of,
    keys,
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
