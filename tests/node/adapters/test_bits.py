"""The largest number of a stored tensor, and whether one is poisoned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.node.adapters.bits import largest_magnitude
from openlora.node.adapters.safetensors import Dtype, RawTensor

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from(["F32", "F16", "BF16"]))
def test_the_largest_magnitude_is_the_maximum(values: list[float], dtype: Dtype) -> None:
    stored = np.array(values, "<f4")
    if dtype == "F16":
        with np.errstate(over="ignore"):
            stored = stored.astype("<f2")
    if dtype == "BF16":
        stored = (stored.view("<u4") & 0xFFFF0000).view("<f4")
    bits = (stored.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else stored
    tensor = RawTensor(dtype, (1, len(values)), memoryview(bits.tobytes()))
    assert largest_magnitude(tensor) == np.abs(stored).max()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_poisoned_number_is_found_anywhere(dtype: Dtype, poison: float) -> None:
    values = np.ones((1 << 20) + 3, "<f4" if dtype == "F32" else "<f2")
    for at in (0, 1 << 20, -1):
        poisoned = values.copy()
        poisoned[at] = poison
        assert not math.isfinite(largest_magnitude(RawTensor(dtype, (1, len(values)), memoryview(poisoned.tobytes()))))
