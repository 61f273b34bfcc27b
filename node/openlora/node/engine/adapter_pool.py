"""The adapters in memory, each in a slot of the store that a runner computes from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from openlora.node.adapters.format import AdapterWeights
from openlora.node.engine import changes
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.lora_tables import FactorStore
from openlora.node.errors import AdapterError


@dataclass(eq=False, slots=True)
class ResidentAdapter:
    """An adapter in its slot. `content` tells its numbers from all others; `users` counts the requests that run with
    it; `listed` says that its key names it."""

    key: str
    slot: int
    rank: int
    nbytes: int
    content: bytes
    users: int = 0
    listed: bool = True


class AdapterPool:
    """Adapters by key, within a budget of bytes.

    A request holds the adapters it started with from `acquire` to `release`. What is unloaded or replaced meanwhile
    leaves memory with its last request; its slot is used again only then.
    """

    def __init__(
        self, max_bytes: int, store: FactorStore, base: Checkpoint, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._max_bytes = max_bytes
        self._store = store
        self._base = base
        self._dtype = dtype
        self._device = device
        self._by_key: dict[str, ResidentAdapter] = {}
        self._slots: list[ResidentAdapter | None] = []

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._by_key)

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._slots if adapter is not None)

    def load(self, key: str, weights: AdapterWeights) -> ResidentAdapter:
        """Put `weights` into a slot and let `key` name it from now on. Raises AdapterError beyond the budget, or beyond
        the machine's memory, and where the base's own numbers do not do for it."""
        nbytes = changes.nbytes(weights, self._dtype)
        old = self._by_key.get(key)
        kept = self.nbytes - (old.nbytes if old is not None and not old.users else 0)
        if kept + nbytes > self._max_bytes:
            raise AdapterError(
                f"the adapter needs {nbytes} bytes and {kept} of the {self._max_bytes} for adapters are in use; "
                "unload others first"
            )
        found = changes.changes(weights, self._base, self._dtype, self._device)
        self.unload(key)
        adapter = ResidentAdapter(key, self._free_slot(), weights.rank, nbytes, weights.digest())
        self._store.put(adapter.slot, found)
        self._slots[adapter.slot] = adapter
        self._by_key[key] = adapter
        return adapter

    def unload(self, key: str) -> None:
        """Let `key` name nothing; an unknown key is no error."""
        adapter = self._by_key.pop(key, None)
        if adapter is not None:
            adapter.listed = False
            self._drop_unused(adapter)

    def acquire(self, key: str) -> ResidentAdapter | None:
        """The adapter that `key` names now, held until `release`."""
        adapter = self._by_key.get(key)
        if adapter is not None:
            adapter.users += 1
        return adapter

    def release(self, adapter: ResidentAdapter) -> None:
        assert adapter.users > 0, "released more often than acquired"
        adapter.users -= 1
        self._drop_unused(adapter)

    def check_integrity(self, held: Sequence[ResidentAdapter]) -> None:
        """Assert that the users are exactly those of `held`, and that nothing stays that neither key nor user needs."""
        for slot, adapter in enumerate(self._slots):
            if adapter is None:
                assert not self._store.holds(slot), f"slot {slot} is free and not empty"
                continue
            assert adapter.users == sum(user is adapter for user in held), f"{adapter.key}: users"
            assert adapter.users or adapter.listed, f"{adapter.key}: needed by nobody"
            assert adapter.listed == (self._by_key.get(adapter.key) is adapter), f"{adapter.key}: key"

    def _drop_unused(self, adapter: ResidentAdapter) -> None:
        if adapter.users or adapter.listed:
            return
        self._slots[adapter.slot] = None
        self._store.drop(adapter.slot)

    def _free_slot(self) -> int:
        if None not in self._slots:
            self._slots.append(None)
        return self._slots.index(None)
