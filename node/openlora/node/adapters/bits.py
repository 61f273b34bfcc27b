"""What the bits of a stored tensor say of its numbers, some rows at a time, without a copy of them all."""

from typing import Final

import numpy as np
import numpy.typing as npt

from openlora.node.adapters.safetensors import ITEM_BYTES, RawTensor

_CHUNK_ITEMS: Final = 1 << 20
_CHUNK_ROWS: Final = 256


def equal(one: RawTensor, other: RawTensor, *, transposed: bool = False) -> bool:
    """Whether dtype, shape and every number's bits are the same; `transposed`: of `other`'s transpose."""
    a, b = _bits(one), _bits(other).T if transposed else _bits(other)
    same = (one.dtype, *a.shape) == (other.dtype, *b.shape)
    return same and all(
        np.array_equal(a[i : i + _CHUNK_ROWS], b[i : i + _CHUNK_ROWS]) for i in range(0, len(a), _CHUNK_ROWS)
    )


def _bits(tensor: RawTensor) -> npt.NDArray[np.uint16 | np.uint32]:
    """The tensor's numbers as patterns."""
    patterns: npt.NDArray[np.uint16 | np.uint32]
    patterns = np.frombuffer(tensor.data, np.uint32 if ITEM_BYTES[tensor.dtype] == 4 else np.uint16)
    return patterns.reshape(tensor.shape)


def largest_magnitude(tensor: RawTensor) -> float:
    """max |x|, NaN or Inf if the tensor holds one.

    Without its sign bit a float's pattern, read as an integer, orders as the magnitude does, with Inf and then NaN on
    top: one integer maximum finds them all.
    """
    patterns = _bits(tensor).reshape(-1)
    magnitude_bits = patterns.dtype.type(np.iinfo(patterns.dtype).max >> 1)
    chunks = range(0, len(patterns), _CHUNK_ITEMS)
    top = max(int((patterns[i : i + _CHUNK_ITEMS] & magnitude_bits).max()) for i in chunks)
    if tensor.dtype == "F16":
        return float(np.uint16(top).view(np.float16))
    return float(np.uint32(top << 16 if tensor.dtype == "BF16" else top).view(np.float32))
