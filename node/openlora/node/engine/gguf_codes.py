"""The codes and scales of GGUF's quantised blocks, taken as they are; no torch is imported.

Block layouts are those of ggml's `ggml-common.h`. A value is scale · code, plus the minimum where a type has one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codes:
    """The values of some blocks: values [blocks, of a block], scales and minima [blocks, groups of a block]."""

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[Any]  # float16, or float32 where a scale is a product
    minima: npt.NDArray[Any] | None
    bits: int  # 4 where `values` are −8 to 7 without minima or 0 to 15 with them, else 8


def read_codes(kind: str, blocks: Bytes) -> Codes | None:
    """Of blocks [n, bytes of a block] of the GGUF type `kind`; None for a type whose values are no such codes."""
    reader = _READERS.get(kind)
    return None if reader is None else reader(blocks)


def _q8_0(blocks: Bytes) -> Codes:
    return Codes(blocks[:, 2:].view(np.int8), _halves(blocks[:, :2]), None, bits=8)


def _q4_0(blocks: Bytes) -> Codes:
    return Codes(_nibbles(blocks[:, 2:], 16) - np.int8(8), _halves(blocks[:, :2]), None, bits=4)


def _q4_1(blocks: Bytes) -> Codes:
    return Codes(_nibbles(blocks[:, 4:], 16), _halves(blocks[:, :2]), _halves(blocks[:, 2:4]), bits=4)


def _q5_0(blocks: Bytes) -> Codes:
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little").view(np.int8)
    return Codes((_nibbles(blocks[:, 6:], 16) | fifth << 4) - np.int8(16), _halves(blocks[:, :2]), None, bits=8)


def _q5_1(blocks: Bytes) -> Codes:
    fifth = np.unpackbits(blocks[:, 4:8], axis=1, bitorder="little").view(np.int8)
    return Codes(_nibbles(blocks[:, 8:], 16) | fifth << 4, _halves(blocks[:, :2]), _halves(blocks[:, 2:4]), bits=8)


def _q4_k(blocks: Bytes) -> Codes:
    scales, minima = _six_bit_scales(blocks)
    return Codes(_nibbles(blocks[:, 16:], 32), scales, minima, bits=4)


def _q5_k(blocks: Bytes) -> Codes:
    scales, minima = _six_bit_scales(blocks)
    fifth = _fields(blocks[:, 16:48], 32, 1)
    return Codes(_nibbles(blocks[:, 48:], 32) | fifth << 4, scales, minima, bits=8)


def _q6_k(blocks: Bytes) -> Codes:
    low, high = _nibbles(blocks[:, :128], 64), _fields(blocks[:, 128:192], 32, 2)
    scales = _halves(blocks[:, 208:]).astype(np.float32) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return Codes((low | high << 4) - np.int8(32), scales, None, bits=8)


def _halves(two_bytes: Bytes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(two_bytes).view(np.float16)


def _nibbles(packed: Bytes, run: int) -> npt.NDArray[np.int8]:
    """Of every `run` bytes, the low halves, then the high ones."""
    return _fields(packed, run, 4)


def _fields(packed: Bytes, run: int, bits: int) -> npt.NDArray[np.int8]:
    """Of every `run` bytes, their lowest `bits` bits, then the next ones, …"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    runs = packed.reshape(len(packed), -1, 1, run)
    return (runs >> shifts & np.uint8((1 << bits) - 1)).astype(np.int8).reshape(len(packed), -1)


def _six_bit_scales(blocks: Bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scales and minima of eight groups: two float16 factors, then a, b and c of four bytes each. Scale i is a[i]'s low
    six bits, scale 4 + i is c[i]'s low half and above it a[i]'s upper two bits; minima likewise of b[i] and c[i]'s high
    half. ggml subtracts the minima."""
    factors = _halves(blocks[:, :4]).astype(np.float32)
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((a & 63, (c & 15) | (a >> 6 << 4)), axis=1).astype(np.float32)
    minima = np.concatenate((b & 63, (c >> 4) | (b >> 6 << 4)), axis=1).astype(np.float32)
    return factors[:, :1] * scales, -(factors[:, 1:] * minima)


_READERS: Mapping[str, Callable[[Bytes], Codes]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
