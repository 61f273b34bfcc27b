"""Rotary position embedding: the frequencies of the kinds we serve."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions as if they were `factor` times as dense, as `rope_type: linear` writes it."""

    factor: float

    def apply(self, frequency: float) -> float:
        return frequency / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of long wavelengths, as `rope_type: llama3` writes it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequency: float) -> float:
        """Unchanged for short wavelengths, divided by `factor` for long ones, interpolated between."""
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(share, 0.0), 1.0)
        return frequency * (kept + (1.0 - kept) / self.factor)


def frequencies(
    theta: float, head_size: int, scaling: LinearScaling | Llama3Scaling | None = None
) -> tuple[float, ...]:
    """Radians a position, one for each of the head's head_size/2 pairs: theta^(−2i/head_size), then scaled."""
    plain = (theta ** (-2 * i / head_size) for i in range(head_size // 2))
    return tuple(plain if scaling is None else map(scaling.apply, plain))
