"""Where loaded adapters lie: the tables that the LoRA ops read."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from openlora.kernels.types import Change


class FactorStore(Protocol):
    """Adapters by slot, in whatever form a runner computes with; who is in which slot is AdapterPool's affair."""

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        """Fill a free slot; `changes` by module, of those in DecoderConfig.modules(). Raises AdapterError where
        memory ends, and leaves the slot free."""
        ...

    def drop(self, slot: int) -> None: ...

    def holds(self, slot: int) -> bool: ...


class LoraTables:
    """A table a module, of changes by slot."""

    def __init__(self) -> None:
        self._slots = 0
        self._tables: dict[str, list[Change | None]] = {}

    def __getitem__(self, module: str) -> Sequence[Change | None]:
        return self._tables[module]

    def get(self, module: str) -> Sequence[Change | None] | None:
        """None: no adapter touches the module."""
        return self._tables.get(module)

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        if slot >= self._slots:
            for table in self._tables.values():
                table += [None] * (slot + 1 - self._slots)
            self._slots = slot + 1
        for module, change in changes.items():
            self._tables.setdefault(module, [None] * self._slots)[slot] = change

    def drop(self, slot: int) -> None:
        for module, table in list(self._tables.items()):
            table[slot] = None
            if not any(table):
                del self._tables[module]

    def holds(self, slot: int) -> bool:
        return any(table[slot] for table in self._tables.values())
