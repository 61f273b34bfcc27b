"""What the ops are given besides plain tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """S sequences and the T rows computed for them now; each sequence's rows are its newest tokens.

    `page_table[s]` lists sequence s's pages in order of position; entries past its context are never read.
    """

    row_starts: Tensor  # [S + 1] int32; rows row_starts[s]:row_starts[s + 1] belong to sequence s, one at least
    context_lens: Tensor  # [S] int32; tokens of sequence s in the cache, this step's included
    page_table: Tensor  # [S, most pages] int32


@dataclass(frozen=True, slots=True)
class LoraEntries:
    """Which adapters each row uses, as a CSR list: row t owns entries indptr[t]:indptr[t + 1], maybe none."""

    indptr: Tensor  # [T + 1] int32
    slot: Tensor  # [E] int32
    weight: Tensor  # [E] float32


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """What one adapter adds to a weight W [out, in]: ΔW = scale · B · A, and diag(stretch) · W (DoRA).

    For an embedding `in` counts the tokens, and W is its transpose.
    """

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float
    stretch: Tensor | None = None  # [out] float32

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes + (0 if self.stretch is None else self.stretch.nbytes)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one adapter adds to a weight that it replaces: ΔW, of the weight's own shape."""

    weight: Tensor

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


Change = LoraFactors | Difference


class Changes(Protocol):
    """What adapters change of one module, by slot; None where a slot leaves it alone."""

    def __len__(self) -> int: ...
    def __getitem__(self, slot: int, /) -> Change | None: ...


class ChangeTable(Changes, Protocol):
    """Changes that come and go: a list, or what a backend's kernels read."""

    def __setitem__(self, slot: int, change: Change | None, /) -> None: ...
    def extend(self, changes: Iterable[Change | None], /) -> None: ...


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight [out, in] of integers, w[o, i] = scale[o] · codes[o, i], that are multiplied as such: see
    reference.linear_int8."""

    codes: Tensor  # [out, in] int8, never −128
    scale: Tensor  # [out] float32


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """A weight [out, in] that is kept in fewer bits: w[o, i] = scales[o, i // group] · codes[o, i], plus minima[o,
    i // group] where there are any. Products may round this number to the activations' dtype first."""

    codes: Tensor  # [out, in] int8; of 4 bits: 0 to 15 with minima, −8 to 7 without
    scales: Tensor  # [out, in / group rounded up] float16 or float32, all finite
    minima: Tensor | None  # as scales
    bits: int  # 4 or 8
    group: int  # a multiple of 16


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A CodedWeight of 4 bits as a device reads it, two codes a byte: of every 64 inputs, byte j holds the code of
    input j in its low half and of input 32 + j in its high half. Inputs past the last have the code 0."""

    codes: Tensor  # [out, 32 · inputs / 64 rounded up] uint8
    scales: Tensor  # [out, inputs / group rounded up]
    minima: Tensor | None  # as scales; without them a code is −8 to 7, as two's complement
    inputs: int
    group: int


Weight = Tensor | Int8Weight | CodedWeight | Int4Weight
