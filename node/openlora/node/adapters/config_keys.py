"""The keys of `adapter_config.json` that are passed over, each at the values that change nothing."""

from collections.abc import Callable, Mapping
from typing import Any, Final

FLOAT32_MAX: Final = 3.4028234663852886e38


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -FLOAT32_MAX <= value <= FLOAT32_MAX


def _is(*allowed: object) -> Callable[[Any], bool]:
    """The value is one of `allowed`, type included: 0 is not false."""
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_settings(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_library_class(value: Any) -> bool:
    """What PEFT writes where no task_type was given: the class that the adapter was trained on."""
    match value:
        case {"parent_library": str(library), "base_model_class": str(name)}:
            return library.startswith("transformers.") and name.endswith("ForCausalLM")
    return value is None


_NULL = _is(None)
_FALSE = _is(False, None)
_EMPTY = _is(None, [])
_TEXT = "text is expected"
_NUMBER = "a finite number is expected"
_SETTINGS = "an object is expected"
_CONVERT = (
    "the base's weights change; save plain LoRA by path_initial_model_for_weight_conversion, or with LoftQ its base, "
    "and init_lora_weights as true"
)
_PLAIN = "train plain LoRA or DoRA instead"

# Key: what its value may be, and what is wrong with any other.
PASSED_OVER: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    # provenance, never followed
    "base_model_name_or_path": (_is_text, _TEXT),
    "revision": (_is_text, _TEXT),
    "peft_version": (_is_text, _TEXT),
    "megatron_core": (_is_text, _TEXT),
    "peft_type": (  # required elsewhere
        _is("LORA"),
        "adapters of type LORA are; train one, or let PEFT's save_as_lora make one of LoHa, LoKr, VeRA and the like",
    ),
    "task_type": (_is(None, "CAUSAL_LM"), "adapters of causal language models are"),
    # training only
    "inference_mode": (_is(True, False), "true or false is expected"),
    "runtime_config": (_is_settings, _SETTINGS),  # PEFT drops it
    "lora_dropout": (is_number, _NUMBER),
    "merge_weights": (_is(True, False), "true or false is expected"),  # PEFT until 0.2 wrote this and enable_lora
    "init_lora_weights": (_is(True, False, "gaussian", "orthogonal", "eva", "mica"), _CONVERT),
    # read with their own init_lora_weights, or in training: VeLoRA and MonteCLoRA answer as plain LoRA does
    **dict.fromkeys(
        ("corda_config", "eva_config", "loftq_config", "lora_ga_config", "monteclora_config", "velora_config"),
        (_is_settings, _SETTINGS),
    ),
    "qalora_group_size": (is_number, _NUMBER),  # read with use_qalora alone
    # other mathematics than ours, or other weights
    "alora_invocation_tokens": (_NULL, "aLoRA acts from its invocation tokens on; " + _PLAIN),
    "arrow_config": (_NULL, "Arrow chooses adapters by token; name them in a recipe instead"),
    "auto_mapping": (
        _is_library_class,
        "nothing is imported for an adapter; train it on a causal language model of transformers",
    ),
    "bias": (_is("none", "all", "lora_only"), '"none" is expected'),  # the file holds what was trained of them
    "enable_lora": (_NULL, "parts of a fused layer; train the whole"),
    "fan_in_fan_out": (_is(True, False, None), "true or false is expected"),  # PEFT too takes it for false of nn.Linear
    "kasa_config": (_NULL, "KaSA; " + _PLAIN),
    "layer_replication": (_NULL, "the base has its own layers alone; train on it without replication"),
    "megatron_config": (_NULL, "Megatron's parallel layers; save for one device"),
    "target_parameters": (_EMPTY, "bare parameters; name modules in target_modules"),
    "use_bdlora": (_FALSE, "BD-LoRA; " + _PLAIN),
    "use_qalora": (_FALSE, "QA-LoRA; " + _PLAIN),
}
