"""What an exchange of blocks has done since its start."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Blocks and bytes that peers have taken whole, and that are in our store from them. `refused`: by code."""

    served_blocks: int = 0
    served_bytes: int = 0
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    duplicate_blocks: int = 0  # asked for, and come after another peer's copy
    refused: Counter[str] = field(default_factory=Counter)
