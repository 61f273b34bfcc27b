"""What the kernels know of a module's adapters: a row of numbers for each slot, in the device's memory.

Kernels find an adapter by its slot, so nothing about adapters is sent to the device in a step, and a captured graph
serves whatever adapters the slots have come to hold.
"""

from collections.abc import Collection, Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from openlora.kernels.types import Change, Changes, Difference, LoraFactors

# A slot's row: five int64, all zero where it adds no product of factors.
A, B, RANK, SCALE, STRETCH = (tl.constexpr(i) for i in range(5))
FIELDS = tl.constexpr(5)
ALIGNMENT = tl.constexpr(16)  # bytes, of an adapter's factors: what one instruction reads
_SLOTS = 64  # that a table has room for at first
_LEAST_RANK = 16


class FactorTable:
    """The changes of one module by slot, as a list has them, and as the kernels read them.

    What decides how kernels are launched only ever grows, so that few captured graphs become stale.
    """

    def __init__(self, device: torch.device, changes: Iterable[Change | None] = ()) -> None:
        self._changes: list[Change | None] = []
        self._whole: set[int] = set()
        self._low_rank: set[int] = set()
        self.rows = torch.zeros(_SLOTS, FIELDS.value, dtype=torch.int64, device=device)
        self.dtype: torch.dtype | None = None  # of all factors; None: there were none yet
        self.inputs = 0  # of the module, which all factors share
        self.most_rank = _LEAST_RANK  # a power of two that no rank exceeds
        self.ranks_of_8 = True
        self.extend(changes)

    @classmethod
    def of(cls, table: Changes, device: torch.device) -> "FactorTable":
        return table if isinstance(table, FactorTable) else cls(device, (table[slot] for slot in range(len(table))))

    @property
    def launch(self) -> tuple[object, ...]:
        """What a captured graph depends on."""
        return self.rows.data_ptr(), self.dtype, self.most_rank, self.ranks_of_8

    def low_rank(self, slots: Collection[int] | None) -> bool:
        """Whether any of the slots adds a product of factors; None: whether one ever did."""
        return self.dtype is not None if slots is None else not self._low_rank.isdisjoint(slots)

    def whole(self, slots: Collection[int] | None) -> bool:
        """Whether any of the slots replaces the weight; None: they are known not to."""
        return slots is not None and not self._whole.isdisjoint(slots)

    def __len__(self) -> int:
        return len(self._changes)

    def __getitem__(self, slot: int) -> Change | None:
        return self._changes[slot]

    def __setitem__(self, slot: int, change: Change | None) -> None:
        """Raises ValueError for factors that the kernels cannot read."""
        self._whole.discard(slot)
        self._low_rank.discard(slot)
        row = [0] * FIELDS.value
        match change:
            case LoraFactors():
                self._admit(change)
                self._low_rank.add(slot)
                row = described(change)
            case Difference():
                self._whole.add(slot)
        self._changes[slot] = change
        self.rows[slot] = torch.tensor(row, dtype=torch.int64)

    def extend(self, changes: Iterable[Change | None]) -> None:
        for change in changes:
            slot = len(self._changes)
            self._changes.append(None)
            if slot == len(self.rows):
                self.rows = torch.cat((self.rows, torch.zeros_like(self.rows)))
            if change is not None:
                self[slot] = change

    def _admit(self, change: LoraFactors) -> None:
        if not change.a.dtype == change.b.dtype == (self.dtype or change.a.dtype):
            raise ValueError("lora: the adapters of one layer must share one dtype")
        for factor in (change.a, change.b):
            if not factor.is_contiguous():
                raise ValueError("lora: an adapter's factors must be contiguous")
            if factor.data_ptr() % ALIGNMENT.value:
                raise ValueError(f"lora: an adapter's factors must begin at a multiple of {ALIGNMENT.value} bytes")
        rank, self.inputs = change.a.shape
        self.dtype = change.a.dtype
        self.most_rank = max(self.most_rank, triton.next_power_of_2(rank))
        self.ranks_of_8 = self.ranks_of_8 and rank % 8 == 0


def described(change: LoraFactors) -> list[int]:
    """A slot's row."""
    scale = int(torch.tensor(change.scale, dtype=torch.float32).view(torch.int32))
    stretch = 0 if change.stretch is None else change.stretch.data_ptr()
    return [change.a.data_ptr(), change.b.data_ptr(), len(change.a), scale, stretch]


def alone(slot: int, weight: Tensor) -> Tensor:
    """Rows of a table in which `slot` has `weight` as its A, and no B."""
    rows = torch.zeros(slot + 1, FIELDS.value, dtype=torch.int64)
    rows[slot] = torch.tensor(described(LoraFactors(weight, weight[:0], 1.0)), dtype=torch.int64)
    return rows.to(weight.device)
