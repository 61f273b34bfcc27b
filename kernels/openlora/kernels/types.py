"""What the ops are given besides plain tensors."""

from dataclasses import dataclass

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
    """One adapter's part in one linear layer: scale · B · A."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float
