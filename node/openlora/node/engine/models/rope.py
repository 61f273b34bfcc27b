"""Rotary position embedding: the frequencies of the kinds we serve, in radians a position, one for each pair of a head.

In float32, rounded where transformers rounds: what thousands of positions multiply shows its last bit.
"""

import math

import numpy as np
import numpy.typing as npt

from openlora.node.errors import ModelError

MAX_HEAD_SIZE = 1024
MAX_THETA = 1e30
Frequencies = npt.NDArray[np.float32]


def plain(theta: float, head_size: int) -> Frequencies:
    """theta^(−2i/head_size). Raises ModelError for a theta or a head that no model has."""
    if not 1 < theta < MAX_THETA:
        raise ModelError(f"rope_theta {theta} does not lie between 1 and {MAX_THETA:g}")
    if not 2 <= head_size <= MAX_HEAD_SIZE:
        raise ModelError(f"head size {head_size} does not lie between 2 and {MAX_HEAD_SIZE}")
    exponents = np.arange(0, head_size - 1, 2, dtype=np.float32) / np.float32(head_size)
    found: Frequencies = 1 / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
    return found


def linear(frequencies: Frequencies, factor: float) -> Frequencies:
    """Positions as if they were `factor` times as dense."""
    return frequencies / np.float32(factor)


def llama3(frequencies: Frequencies, factor: float, low: float, high: float, positions: int) -> Frequencies:
    """Llama 3.1's: unchanged where a pair turns more than `high` times in the original `positions`, divided by `factor`
    where less than `low` times, interpolated between."""
    turns = positions / (np.float32(2 * math.pi) / frequencies)
    return _blend(linear(frequencies, factor), frequencies, (turns - low) / (high - low))


def yarn(frequencies: Frequencies, factor: float, first: float, last: float) -> Frequencies:
    """YaRN (Peng et al., 2023): unchanged up to the pair `first`, divided by `factor` from `last` on."""
    pairs = np.arange(len(frequencies), dtype=np.float32)
    return _blend(linear(frequencies, factor), frequencies, 1 - (pairs - np.float32(first)) / np.float32(last - first))


def _blend(scaled: Frequencies, unchanged: Frequencies, share: npt.NDArray[np.floating]) -> Frequencies:
    share = np.clip(share, 0, 1).astype(np.float32)
    return (1 - share) * scaled + share * unchanged
