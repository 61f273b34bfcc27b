"""The Triton kernels under Triton 3.6's interpreter, four of whose faults are mended while a test runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from openlora.kernels.ops import Backend


def triton_backend() -> Backend:
    """Interpreted. Skips the test where triton is not installed."""
    pytest.importorskip("triton", reason="the Triton kernels are not tested: triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read again when a kernel is defined
        from openlora.kernels.triton.backend import TRITON
    return TRITON


@contextmanager
def mended() -> Iterator[None]:
    """A bound of `range` is an array of one element, of which numpy makes no int since 2.4; `dot` multiplies the bits
    of bfloat16 numbers as if they were integers, and its sums are numpy's, whose order depends on where a row stands in
    its block (on AVX2), as no matrix instruction's does; and float32 is cut to bfloat16 where a device rounds."""
    from triton import language as tl
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def patch_tensor_and_index(tensor: type, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def dot_by_row(self: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
        rows, columns = (self.cast_impl(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        product = np.matmul(rows.data[..., None, :], columns.data[..., None, :, :], dtype=total.data.dtype)
        return interpreter.TensorHandle(product.squeeze(-2) + total.data, total.dtype.scalar)

    def cast_and_round(self: Any, source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # the interpreter imports more of itself when first used
        patch.setattr(interpreter, "_patch_lang_tensor", patch_tensor_and_index)
        patch.setattr(builder, "create_dot", dot_by_row)
        patch.setattr(builder, "cast_impl", cast_and_round)
        yield
