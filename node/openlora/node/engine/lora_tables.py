"""Where loaded adapters lie: the tables that the LoRA ops read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from openlora.kernels.types import Change, Changes, ChangeTable, Difference


class FactorStore(Protocol):
    """Adapters by slot, in whatever form a runner computes with; who is in which slot is AdapterPool's affair."""

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        """Fill a free slot; `changes` by module, of those in DecoderConfig.modules(), or by what `bias_of` calls a
        linear layer's bias. Raises AdapterError where memory ends, and leaves the slot free."""
        ...

    def drop(self, slot: int) -> None: ...

    def holds(self, slot: int) -> bool: ...


class LoraTables:
    """A table a module or bias, of changes by slot. A table stays when it has become empty: it costs next to nothing,
    and what reads it may have been told where it is."""

    def __init__(self, new_table: Callable[[], ChangeTable] = list) -> None:
        self.version = 0  # grows with every change
        self.replacing: set[int] = set()  # the slots that replace a weight or a bias as a whole
        self._new_table = new_table
        self._slots = 0
        self._tables: dict[str, ChangeTable] = {}

    def __iter__(self) -> Iterator[tuple[str, ChangeTable]]:
        return iter(self._tables.items())

    def __getitem__(self, module: str) -> Changes:
        return self._tables[module]

    def get(self, module: str) -> Changes | None:
        """None: no adapter ever touched the module."""
        return self._tables.get(module)

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        if slot >= self._slots:
            for table in self._tables.values():
                table.extend([None] * (slot + 1 - self._slots))
            self._slots = slot + 1
        for module, change in changes.items():
            self._table(module)[slot] = change
        if any(isinstance(change, Difference) for change in changes.values()):
            self.replacing.add(slot)
        self.version += 1

    def drop(self, slot: int) -> None:
        for table in self._tables.values():
            table[slot] = None
        self.replacing.discard(slot)
        self.version += 1

    def holds(self, slot: int) -> bool:
        return any(table[slot] for table in self._tables.values())

    def _table(self, module: str) -> ChangeTable:
        if (table := self._tables.get(module)) is None:
            table = self._tables[module] = self._new_table()
            table.extend([None] * self._slots)
        return table
