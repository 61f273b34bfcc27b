"""`adapter_config.json` under a closed schema: what cannot be served exactly is refused by name.

PEFT's own reader imports what `auto_mapping` names and compiles `target_modules` as a regular expression, so it never
sees a stranger's file. Here every key is known, every value has one type, and names are literal.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from openlora.node.adapters.strict_json import parse_object, quote
from openlora.node.errors import AdapterError

CONFIG_FILE: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 64 * 1024
MAX_RANK: Final = 256
MAX_NAMES: Final = 4096
_FLOAT32_MAX: Final = 3.4028234663852886e38
_LITERAL_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What the weights mean: which modules they target, at which rank, scaled by which alpha."""

    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def targets(self, module: str) -> bool:
        return any(names(target, module) for target in self.target_modules)

    def rank_of(self, module: str) -> int:
        return next((rank for name, rank in self.rank_pattern.items() if names(name, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """s = α/r, or α/√r for rsLoRA (Kalajdzievski, 2023)."""
        alpha = next((alpha for name, alpha in self.alpha_pattern.items() if names(name, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def names(name: str, module: str) -> bool:
    """Whether the literal `name` is `module` or a dotted tail of it: "q_proj" names "layers.0.self_attn.q_proj"."""
    return module == name or module.endswith("." + name)


def parse_config(data: bytes) -> AdapterConfig:
    """The configuration in `data`, or an AdapterError that names the key."""
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterError(f"{CONFIG_FILE}: larger than {MAX_CONFIG_BYTES // 1024} KiB")
    fields = parse_object(data, CONFIG_FILE)
    for key, value in fields.items():
        if key in _READ:
            continue
        if key not in _HARMLESS:
            raise AdapterError(f"{CONFIG_FILE}: unknown key {quote(key)}")
        if not _HARMLESS[key](value):
            raise AdapterError(f"{CONFIG_FILE}: {key} = {quote(value)} is not supported yet")
    if fields.get("peft_type") != "LORA":
        raise AdapterError(f'{CONFIG_FILE}: peft_type must be "LORA"')
    rslora = fields.get("use_rslora", False)
    if type(rslora) is not bool:
        raise AdapterError(f"{CONFIG_FILE}: use_rslora must be true or false")
    return AdapterConfig(
        rank=_rank("r", _required(fields, "r")),
        alpha=_alpha("lora_alpha", _required(fields, "lora_alpha")),
        rslora=rslora,
        target_modules=_literal_names("target_modules", _required(fields, "target_modules")),
        rank_pattern=_pattern("rank_pattern", fields.get("rank_pattern"), _rank),
        alpha_pattern=_pattern("alpha_pattern", fields.get("alpha_pattern"), _alpha),
    )


def _required(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise AdapterError(f"{CONFIG_FILE}: {key} is missing")
    return fields[key]


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be an integer from 1 to {MAX_RANK}, not {quote(value)}")
    return value


def _alpha(key: str, value: Any) -> float:
    """Finite in float32 as well, the widest type that the scale is ever applied in."""
    if not _is_number(value):
        raise AdapterError(f"{CONFIG_FILE}: {key} must be a finite 32-bit number, not {quote(value)}")
    return float(value)


def _literal_name(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256 or not _LITERAL_NAME.fullmatch(value):
        raise AdapterError(f"{CONFIG_FILE}: {key} must hold literal module names, not {quote(value)}")
    return value


def _literal_names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NAMES:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be a list of literal module names, not {quote(value)}")
    found = tuple(_literal_name(key, name) for name in value)
    if len(set(found)) != len(found):
        raise AdapterError(f"{CONFIG_FILE}: {key} names a module twice")
    return found


def _pattern(key: str, value: Any, check: Callable[[str, Any], T]) -> Mapping[str, T]:
    """PEFT's patterns, in their order (the first that matches counts), with literal names for keys."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be an object of literal module names, not {quote(value)}")
    return {_literal_name(key, name): check(f"{key}.{name}", entry) for name, entry in value.items()}


# ---- keys that are read past: harmless, at these values only --------------------------------------------------------


def _is(*allowed: object) -> Callable[[Any], bool]:
    """The value is one of `allowed`, type included: 0 is not false."""
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_FLOAT32_MAX <= value <= _FLOAT32_MAX


_READ: Final = frozenset({"r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"})
_NULL = _is(None)
_FALSE = _is(False, None)
_HARMLESS: Final[Mapping[str, Callable[[Any], bool]]] = {
    # provenance, never followed
    "base_model_name_or_path": _is_text,
    "revision": _is_text,
    "peft_version": _is_text,
    "megatron_core": _is_text,
    "peft_type": _is_text,  # its value is required above
    "task_type": _is(None, "CAUSAL_LM"),
    # training only
    "inference_mode": _is(True, False),
    "lora_dropout": _is_number,
    "init_lora_weights": _is(True, False, "gaussian", "orthogonal"),  # pissa, olora and the like change the base
    "loftq_config": _is(None, {}),
    "qalora_group_size": _is_number,  # read with use_qalora alone
    # other mathematics than s·B·A·x, or more weights than A and B
    "alora_invocation_tokens": _NULL,
    "arrow_config": _NULL,
    "auto_mapping": _NULL,
    "bias": _is("none"),
    "corda_config": _NULL,
    "ensure_weight_tying": _FALSE,
    "eva_config": _NULL,
    "exclude_modules": _is(None, []),
    "fan_in_fan_out": _FALSE,
    "kasa_config": _NULL,
    "layer_replication": _NULL,
    "layers_pattern": _is(None, []),
    "layers_to_transform": _NULL,
    "lora_bias": _FALSE,
    "lora_ga_config": _NULL,
    "megatron_config": _NULL,
    "modules_to_save": _is(None, []),
    "monteclora_config": _NULL,
    "target_parameters": _is(None, []),
    "trainable_token_indices": _NULL,
    "use_bdlora": _FALSE,
    "use_dora": _FALSE,
    "use_qalora": _FALSE,
    "velora_config": _NULL,
}
