"""What one forward pass is given: the rows, where they live in the cache, and the adapters they use."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openlora.kernels.ops import AttentionPlan, LoraPlan
from openlora.node.engine.lora_tables import LoraTables


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The adapters of some rows: the plan lists each row's (slot, weight) entries, the tables what adapters add."""

    plan: LoraPlan
    tables: LoraTables


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows of any mix of prompt chunks and decode steps."""

    tokens: Tensor  # [T] int32
    positions: Tensor  # [T] int32
    slots: Tensor  # [T] int32: where the rows' keys and values go
    attention: Mapping[int | None, AttentionPlan]  # by window
    output_rows: Tensor  # [N] int32: the rows whose next-token logits are wanted
    lora: LoraBatch | None  # of all rows; None: none uses an adapter
    output_lora: LoraBatch | None  # of the output rows


@dataclass(frozen=True, slots=True)
class KvCache:
    """The paged keys and values of every layer; a page's content is unspecified until it is written."""

    keys: tuple[Tensor, ...]  # a layer each: [pages, page tokens, key-value heads, head size]
    values: tuple[Tensor, ...]

    @classmethod
    def empty(
        cls, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> "KvCache":
        keys, values = (tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)) for _ in range(2))
        return cls(keys, values)
