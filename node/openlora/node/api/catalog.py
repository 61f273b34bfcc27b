"""The `model` field: the base model, an adapter, or an ensemble of adapters with weights."""

import math
import re
import time
from dataclasses import dataclass, field

from openlora.node.engine.messages import AdapterUse
from openlora.node.errors import ConfigError, RequestError

MAX_TERMS = 8
MAX_WEIGHT = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,127}")


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that the engine holds under `name`."""

    name: str
    path: str
    created: int = field(default_factory=lambda: int(time.time()))


class Catalog:
    """What can be asked for by name. `base` alone is the base model; "a:0.7+b:0.3" adds 0.7 of `a` and 0.3 of `b`."""

    def __init__(self, base: str, root: str) -> None:
        self.base = ServedAdapter(check_name(base), root)
        self._adapters: dict[str, ServedAdapter] = {}

    @property
    def adapters(self) -> tuple[ServedAdapter, ...]:
        return tuple(self._adapters.values())

    def __contains__(self, name: str) -> bool:
        return name == self.base.name or name in self._adapters

    def add(self, adapter: ServedAdapter) -> None:
        self._adapters[adapter.name] = adapter

    def remove(self, name: str) -> None:
        self._adapters.pop(name, None)

    def resolve(self, model: str) -> tuple[AdapterUse, ...]:
        """The recipe that `model` names; empty for the base. Raises RequestError."""
        if model == self.base.name:
            return ()
        terms = model.split("+")
        if len(terms) > MAX_TERMS:
            raise RequestError("too_many_adapters", f"An ensemble has at most {MAX_TERMS} adapters.", "model")
        uses = tuple(self._use(term) for term in terms)
        names = [use.key for use in uses]
        if len(set(names)) < len(names):
            raise RequestError("invalid_value", "An ensemble names each adapter once.", "model")
        return uses

    def _use(self, term: str) -> AdapterUse:
        name, _, weight = term.strip().partition(":")
        if name not in self._adapters:
            if name == self.base.name:
                raise RequestError("invalid_value", "The base model is part of every answer; name adapters.", "model")
            raise RequestError(
                "model_not_found", f"The model {name[:128]!r} does not exist; GET /v1/models lists what does.", "model"
            )
        return AdapterUse(name, _weight(weight) if ":" in term else 1.0)


def check_name(name: str) -> str:
    """A name that can stand in a `model` field. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:128]!r} cannot name a model: use at most 128 letters, digits and ._/@-, a letter or digit first"
        )
    return name


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT or weight == 0:
        raise RequestError(
            "invalid_value", f"An adapter's weight is a number from -10 to 10 other than 0, not {text[:20]!r}.", "model"
        )
    return weight
