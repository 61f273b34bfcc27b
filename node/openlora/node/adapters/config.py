"""`adapter_config.json` under a closed schema: what cannot be served exactly is refused by name.

PEFT's own reader imports what `auto_mapping` names and compiles `target_modules` as a regular expression, so it never
sees a stranger's file. Here every key is known, every value has one type, and names are literal; what they name is what
they name in PEFT. A pattern that chooses layers is never run, since it may take exponential time: PEFT writes A and B
of every layer that matches, so the tensors say which layers are meant; one without them begins with B = 0 there too.
Only a file that PEFT did not write can differ.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from openlora.node.adapters.config_keys import PASSED_OVER, is_number
from openlora.node.adapters.strict_json import parse_object
from openlora.node.errors import AdapterError
from openlora.node.malformed import quote

CONFIG_FILE: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 64 * 1024
MAX_RANK: Final = 256
MAX_NAMES: Final = 4096
MAX_LAYER: Final = 4096
MAX_TOKEN: Final = 2**31
ALL_LINEAR: Final = "all-linear"
_TIED: Final = ("embed_tokens", "lm_head")
_LITERAL_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What the weights mean: which modules they change, at which rank, scaled by which alpha."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    biased: bool  # a bias stands beside each B
    target_modules: tuple[str, ...] | None  # None: every linear layer but the output head; empty: a pattern
    by_tensors: bool  # a pattern is given for targets or exclusions: of what may be meant, what has tensors is
    exclude_modules: tuple[str, ...]
    layers_to_transform: frozenset[int] | None  # None: all
    layers_pattern: tuple[str, ...]  # what stands before a layer's number; none: whatever does
    modules_to_save: tuple[str, ...]
    trained_tokens: Mapping[str, tuple[int, ...]]  # whose rows it brings, by the name of the module; "": the embedding
    ties_ends: bool  # a head that is tied to the embedding is changed with it
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def targets(self, module: str) -> bool:
        """Whether A and B belong to `module`, which is a layer of a kind that may have them; with `by_tensors`, whether
        they may."""
        if any(names(name, module) for name in self.exclude_modules):
            return False
        if not self.target_modules or module in self.target_modules:
            return True  # a whole name counts in every layer
        if not any(names(name, module) for name in self.target_modules):
            return False
        return self.layers_to_transform is None or self._layer(module) in self.layers_to_transform

    def replaces(self, module: str) -> bool:
        """Whether the adapter brings the module's whole weight. Any ending will do: "norm" is "input_layernorm" too."""
        return module.endswith(self.modules_to_save)

    def ties(self, named: Iterable[str]) -> bool:
        """Whether, where the base's head is tied, these names mean it and the embedding both."""
        return self.ties_ends and any(name.rpartition(".")[2] in _TIED for name in named)

    def rank_of(self, module: str) -> int:
        return next((rank for name, rank in self.rank_pattern.items() if names(name, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """s = α/r, or α/√r for rsLoRA (Kalajdzievski, 2023)."""
        alpha = next((alpha for name, alpha in self.alpha_pattern.items() if names(name, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def _layer(self, module: str) -> int | None:
        """The first number in the name that stands where a layer's number does."""
        parts = module.split(".")
        for i, part in enumerate(parts[:-1]):
            before = ".".join(parts[:i])
            fits = any(names(name, before) for name in self.layers_pattern) if self.layers_pattern else i > 1
            if part.isdecimal() and fits:
                return int(part)
        return None


def names(name: str, module: str) -> bool:
    """Whether the literal `name` is `module` or a dotted tail of it: "q_proj" names "layers.0.self_attn.q_proj".
    One that begins with "^" is the whole name."""
    return module == name.removeprefix("^") or module.endswith("." + name)


def parse_config(data: bytes) -> AdapterConfig:
    """The configuration in `data`, or an AdapterError that names the key."""
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterError(f"{CONFIG_FILE}: larger than {MAX_CONFIG_BYTES // 1024} KiB")
    fields = parse_object(data, CONFIG_FILE)
    _pass_over("peft_type", _required(fields, "peft_type"))  # first: another type's other keys are its own affair
    for key, value in fields.items():
        if key not in _READ:
            _pass_over(key, value)
    target_modules = _targets(_required(fields, "target_modules"))
    layers = _layers(fields.get("layers_to_transform"))
    layers_pattern = fields.get("layers_pattern") or []
    if layers is None and layers_pattern:
        raise AdapterError(f"{CONFIG_FILE}: layers_pattern means nothing without layers_to_transform")
    if layers is not None and not target_modules:
        raise AdapterError(f"{CONFIG_FILE}: layers_to_transform needs a list of target_modules")
    dora, biased = (_flag(key, fields.get(key, False)) for key in ("use_dora", "lora_bias"))
    if dora and biased:
        raise AdapterError(f"{CONFIG_FILE}: lora_bias and use_dora are both set, which PEFT does not train; use one")
    excluded = fields.get("exclude_modules")
    return AdapterConfig(
        rank=_rank("r", _required(fields, "r")),
        alpha=_alpha("lora_alpha", _required(fields, "lora_alpha")),
        rslora=_flag("use_rslora", fields.get("use_rslora", False)),
        dora=dora,
        biased=biased,
        target_modules=target_modules,
        by_tensors=target_modules == () or _is_pattern(excluded),
        exclude_modules=() if _is_pattern(excluded) else _some_names("exclude_modules", excluded),
        layers_to_transform=layers,
        layers_pattern=_some_names(
            "layers_pattern", [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern
        ),
        modules_to_save=_some_names("modules_to_save", fields.get("modules_to_save")),
        trained_tokens=_trained_tokens(fields.get("trainable_token_indices")),
        ties_ends=_flag("ensure_weight_tying", fields.get("ensure_weight_tying", False)),
        rank_pattern=_pattern("rank_pattern", fields.get("rank_pattern"), _rank),
        alpha_pattern=_pattern("alpha_pattern", fields.get("alpha_pattern"), _alpha),
    )


def _pass_over(key: str, value: Any) -> None:
    """A key that changes nothing, at a value that changes nothing."""
    if key not in PASSED_OVER:
        raise AdapterError(f"{CONFIG_FILE}: unknown key {quote(key)}")
    harmless, otherwise = PASSED_OVER[key]
    if not harmless(value):
        raise AdapterError(f"{CONFIG_FILE}: {key} = {quote(value)} is not served: {otherwise}")


def _required(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise AdapterError(f"{CONFIG_FILE}: {key} is missing")
    return fields[key]


def _flag(key: str, value: Any) -> bool:
    if type(value) is not bool:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be true or false")
    return value


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be an integer from 1 to {MAX_RANK}, not {quote(value)}")
    return value


def _alpha(key: str, value: Any) -> float:
    """Finite in float32 as well, the widest type that the scale is ever applied in."""
    if not is_number(value):
        raise AdapterError(f"{CONFIG_FILE}: {key} must be a finite 32-bit number, not {quote(value)}")
    return float(value)


def _literal_name(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256 or not _LITERAL_NAME.fullmatch(value):
        raise AdapterError(
            f"{CONFIG_FILE}: {key} must hold literal module names, since patterns are not run, not {quote(value)}"
        )
    return value


def _targets(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str) and value.lower() == ALL_LINEAR:
        return None
    return () if _is_pattern(value) else _literal_names("target_modules", value)


def _is_pattern(value: Any) -> bool:
    """PEFT takes any text for one."""
    return isinstance(value, str) and value != ""


def _some_names(key: str, value: Any) -> tuple[str, ...]:
    return () if value is None or value == [] else _literal_names(key, value)


def _literal_names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NAMES:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be a list of literal module names, not {quote(value)}")
    return tuple(dict.fromkeys(_literal_name(key, name) for name in value))


def _layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    found = value if isinstance(value, list) else [value]
    if len(found) > MAX_LAYER or not all(type(one) is int and 0 <= one < MAX_LAYER for one in found):
        raise AdapterError(f"{CONFIG_FILE}: layers_to_transform must hold layers' numbers, not {quote(value)}")
    return frozenset(found)


def _trained_tokens(value: Any) -> Mapping[str, tuple[int, ...]]:
    """A list is the embedding's; an object holds lists by the modules' names."""
    if value is None:
        return {}
    if isinstance(value, dict) and 1 <= len(value) <= len(_TIED):
        return {_literal_name("trainable_token_indices", name): _tokens(held) for name, held in value.items()}
    return {"": _tokens(value)}


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < MAX_TOKEN for one in value):
        raise AdapterError(f"{CONFIG_FILE}: trainable_token_indices must hold lists of tokens, not {quote(value)}")
    if not 1 <= len(value) <= MAX_RANK or len(set(value)) != len(value):
        raise AdapterError(f"{CONFIG_FILE}: trainable_token_indices must hold 1 to {MAX_RANK} tokens, each once")
    return tuple(value)


def _pattern(key: str, value: Any, check: Callable[[str, Any], T]) -> Mapping[str, T]:
    """PEFT's patterns, in their order (the first that matches counts), with literal names for keys, or "^" before a
    whole one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise AdapterError(f"{CONFIG_FILE}: {key} must be an object of literal module names, not {quote(value)}")
    for name in value:
        _literal_name(key, name.removeprefix("^"))
    return {name: check(f"{key}.{name}", entry) for name, entry in value.items()}


_READ: Final = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("trainable_token_indices", "ensure_weight_tying"),
    }
)
