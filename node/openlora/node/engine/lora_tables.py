"""Where loaded adapters' factors lie: the tables that the LoRA op reads."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from openlora.kernels.types import LoraFactors


class FactorStore(Protocol):
    """Factors by slot, in whatever form a runner computes with; who is in which slot is AdapterPool's affair."""

    def put(self, slot: int, factors: Mapping[str, LoraFactors]) -> None:
        """Fill a free slot; `factors` by module name, as DecoderConfig.layout() writes it. Raises AdapterError where
        memory ends, and leaves the slot free."""
        ...

    def drop(self, slot: int) -> None: ...

    def holds(self, slot: int) -> bool: ...


class LoraTables:
    """A table a module, of factors by slot."""

    def __init__(self) -> None:
        self._slots = 0
        self._tables: dict[str, list[LoraFactors | None]] = {}

    def __getitem__(self, module: str) -> Sequence[LoraFactors | None]:
        return self._tables[module]

    def get(self, module: str) -> Sequence[LoraFactors | None] | None:
        """None: no adapter touches the module."""
        return self._tables.get(module)

    def put(self, slot: int, factors: Mapping[str, LoraFactors]) -> None:
        if slot >= self._slots:
            for table in self._tables.values():
                table += [None] * (slot + 1 - self._slots)
            self._slots = slot + 1
        for module, factor in factors.items():
            self._tables.setdefault(module, [None] * self._slots)[slot] = factor

    def drop(self, slot: int) -> None:
        for module, table in list(self._tables.items()):
            table[slot] = None
            if not any(table):
                del self._tables[module]

    def holds(self, slot: int) -> bool:
        return any(table[slot] for table in self._tables.values())
