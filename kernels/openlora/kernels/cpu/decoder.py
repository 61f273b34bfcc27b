"""The decoder in C++: weights packed at load, adapters packed when they arrive, a step in one call."""

import ctypes
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openlora.kernels.cpu import library as c
from openlora.kernels.cpu.build import library_path
from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.quantised import unpack_int4
from openlora.kernels.types import Change, CodedWeight, Difference, Int4Weight, Int8Weight, LoraFactors, Weight

PAGE_TOKENS = 16  # the page size of the cache's layout
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("attention_norm", "mlp_norm", "post_attention_norm", "post_mlp_norm", "q_norm", "k_norm")
BIASES = tuple(f"{name}_bias" for name in MATRICES)
HEAD = -1  # the layer whose only matrix is the output head, and whose only norm is the one before it
EMBEDDING = -2  # the embedding's
_PARTS = {name: part for part, name in enumerate((*MATRICES, *NORMS, *BIASES))}
_PARTS |= {"head": _PARTS["q"], "norm": _PARTS["attention_norm"], "head_bias": _PARTS["q_bias"], "": 0}
_MAX_GROUP = 64  # query heads of one key-value head


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A decoder with RMS norms and gated MLPs: x ← x + attention(norm(x)), x ← x + mlp(norm(x)) in each layer, logits =
    head(norm(x))."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rms_norm_eps: float
    attention_scale: float
    embedding_scale: float = 1.0
    attention_soft_cap: float = 0.0  # as reference.soft_cap has them; 0: none
    logit_soft_cap: float = 0.0
    gelu: bool = False  # reference.gelu_tanh_mul between the MLP's projections, not silu_mul


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's norms, for each of MATRICES its weight [out, in] and its bias [out] or None, and how many positions a
    row sees, its own included (None: all)."""

    attention_norm: Tensor
    mlp_norm: Tensor
    matrices: Mapping[str, tuple[Weight, Tensor | None]]
    q_norm: Tensor | None = None  # [head size], of each head before it is rotated
    k_norm: Tensor | None = None
    post_attention_norm: Tensor | None = None  # of what is added to x; the two or none
    post_mlp_norm: Tensor | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor  # [vocabulary, hidden]
    layers: Sequence[LayerWeights]
    norm: Tensor
    head: Weight  # [vocabulary, hidden]
    rope_table: Tensor  # [positions, head size] float32, as reference.rope_ has it


class Rows(NamedTuple):
    """What a step computes for one sequence: its `tokens`, the first of them at position `start`."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]  # of the whole sequence by position
    adapters: Sequence[tuple[int, float]]  # (slot, weight), used by every row
    outputs: int  # how many of the last rows a next token is wanted for


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one output row's token is drawn; see reference.sample."""

    temperature: float
    top_k: int
    top_p: float
    seed: int  # unsigned, 64 bits
    position: int


def open_library(shape: DecoderShape, page_tokens: int, cache_dir: Path) -> ctypes.CDLL:
    """The library, built where it is missing, for models of this shape. Raises KernelsUnavailable."""
    _refuse(
        {
            f"a head size of {shape.head_size}, no multiple of 32": shape.head_size % 32 != 0,
            f"{shape.heads // shape.kv_heads} query heads a key-value head": shape.heads // shape.kv_heads > _MAX_GROUP,
            f"pages of {page_tokens} tokens instead of {PAGE_TOKENS}": page_tokens != PAGE_TOKENS,
        }
    )
    return c.load_library(library_path(cache_dir))


class CpuDecoder:
    """Weights, cache and adapters of one model in bfloat16, computed by `threads` threads.

    A row's logits depend on its own sequence and adapters alone, bit for bit: not on what shares its batch, nor on how
    its prompt was cut into steps. Between instruction sets they differ by rounding.
    """

    def __init__(
        self,
        shape: DecoderShape,
        weights: DecoderWeights,
        *,
        pages: int,
        page_tokens: int,
        threads: int,
        cache_dir: Path,
        instructions: str = "",
    ) -> None:
        """Build the library where it is missing, and pack the weights; of those given, only the embedding is needed
        afterwards. `instructions`: "amx", "avx512", "avx512-bf16", "avx2", "plain", or "" for the best there is.

        Raises KernelsUnavailable.
        """
        _refuse(
            {
                f"numbers of type {weights.embedding.dtype}": weights.embedding.dtype != torch.bfloat16,
                f"weights on {weights.embedding.device}": weights.embedding.device.type != "cpu",
            }
        )
        self._handle: int | None = None
        self._library = open_library(shape, page_tokens, cache_dir)
        self._vocab_size = shape.vocab_size
        self._embedding = weights.embedding.contiguous()
        self._handle = self._create(shape, weights, pages, threads, instructions)
        self.instructions = str(self._library.openlora_decoder_instructions(self._handle).decode())

    def load_adapter(self, slot: int, changes: Mapping[tuple[int, str], Change]) -> None:
        """Put an adapter into a free slot: its changes by (layer, name of MATRICES, NORMS or BIASES); the head's as
        (HEAD, "head") and (HEAD, "head_bias"), its norm's as (HEAD, "norm"), and the embedding's as (EMBEDDING, "").
        Raises MemoryError."""
        factors = {
            place: change
            for place, change in changes.items()
            if isinstance(change, LoraFactors) and place[0] != EMBEDDING
        }
        kept: list[Tensor] = []  # until they are packed
        packed = (c.Factor * len(factors))()
        for entry, ((layer, matrix), factor) in zip(packed, factors.items(), strict=True):
            a, b = (x.to(torch.bfloat16).contiguous() for x in (factor.a, factor.b))
            kept += (a, b)
            entry.layer, entry.part, entry.rank, entry.scale = layer, _PARTS[matrix], len(a), factor.scale
            entry.a, entry.b = a.data_ptr(), b.data_ptr()
        if not self._library.openlora_decoder_load_adapter(self._handle, slot, packed, len(factors)):
            raise MemoryError(f"no memory for an adapter of {len(factors)} matrices")
        found = list(chain.from_iterable(_alterations(place, change) for place, change in changes.items()))
        altered = (c.Alteration * len(found))(*(one.packed() for one in found))
        if found and not self._library.openlora_decoder_alter(self._handle, slot, altered, len(found)):
            self.unload_adapter(slot)
            raise MemoryError(f"no memory for an adapter of {len(found)} stretches, biases and whole weights")

    def unload_adapter(self, slot: int) -> None:
        """Free a slot that no sequence of a coming step uses."""
        self._library.openlora_decoder_unload_adapter(self._handle, slot)

    def step(
        self, rows: Sequence[Rows], sampling: Sequence[Sampling] | None, *, want_logits: bool
    ) -> tuple[list[int], Tensor | None]:
        """Compute the rows into the cache. Returns the next token of every output row (−1 where its logits are not all
        finite), and if wanted the logits [outputs, vocabulary] float32. `sampling` has one entry for each output row;
        None: every token is the most probable one."""
        outputs = sum(one.outputs for one in rows)
        ends = list(accumulate(len(one.tokens) for one in rows))
        logits = torch.empty(outputs, self._vocab_size) if want_logits else None
        chosen = array("i", bytes(4 * outputs))
        arrays: dict[str, array[Any]] = {
            "tokens": _ints(chain.from_iterable(one.tokens for one in rows)),
            "row_starts": _ints((0, *ends)),
            "context_lens": _ints(one.start + len(one.tokens) for one in rows),
            "page_starts": _ints(accumulate((len(one.pages) for one in rows), initial=0)),
            "pages": _ints(chain.from_iterable(one.pages for one in rows)),
            "output_rows": _ints(
                chain.from_iterable(range(end - one.outputs, end) for one, end in zip(rows, ends, strict=True))
            ),
            "entry_starts": _ints(accumulate((len(one.adapters) for one in rows), initial=0)),
            "entry_slots": _ints(slot for one in rows for slot, _ in one.adapters),
            "entry_weights": array("f", [weight for one in rows for _, weight in one.adapters]),
            "chosen": chosen,
        }
        if sampling is not None:
            arrays |= {
                "temperature": array("d", [one.temperature for one in sampling]),
                "top_p": array("d", [one.top_p for one in sampling]),
                "top_k": array("q", [one.top_k for one in sampling]),
                "seed": array("Q", [one.seed for one in sampling]),
                "position": array("q", [one.position for one in sampling]),
            }
        step = c.Step(
            rows=ends[-1],
            sequences=len(rows),
            outputs=outputs,
            logits=logits.data_ptr() if logits is not None else None,
            **{name: values.buffer_info()[0] for name, values in arrays.items()},
        )
        if not self._library.openlora_decoder_step(self._handle, ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {ends[-1]} rows")
        return chosen.tolist(), logits

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.openlora_decoder_destroy(self._handle)

    def _create(self, shape: DecoderShape, weights: DecoderWeights, pages: int, threads: int, instructions: str) -> int:
        kept: list[Tensor] = []  # until they are packed

        def pointer(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
            if tensor is None:
                return None
            kept.append(tensor.to(dtype).contiguous())
            return kept[-1].data_ptr()

        def values(weight: Weight) -> c.Values:
            match weight:
                case Int8Weight(codes, scale):
                    numbers, scales = pointer(codes, torch.int8), pointer(scale, torch.float32)
                    return c.Values(format=c.INT8, group=codes.shape[1], numbers=numbers, scales=scales)
                case CodedWeight(codes, scales, minima, bits, group):
                    return c.Values(
                        format=c.CODES4 if bits == 4 else c.CODES8,
                        group=group,
                        half=scales.dtype == torch.float16,
                        numbers=pointer(codes, torch.int8),
                        scales=pointer(scales, scales.dtype),
                        minima=pointer(minima, scales.dtype),
                    )
                case Int4Weight():
                    return values(unpack_int4(weight))
            return c.Values(format=c.DENSE, numbers=pointer(weight, torch.bfloat16))

        layers = (c.LayerWeights * shape.layers)()
        for to, layer in zip(layers, weights.layers, strict=True):
            to.attention_norm = pointer(layer.attention_norm, torch.float32)
            to.mlp_norm = pointer(layer.mlp_norm, torch.float32)
            for name in ("q_norm", "k_norm", "post_attention_norm", "post_mlp_norm"):
                setattr(to, name, pointer(getattr(layer, name), torch.float32))
            to.window = min(layer.window or 0, len(weights.rope_table))
            for name in MATRICES:
                weight, bias = layer.matrices[name]
                setattr(to, name, values(weight))
                setattr(to, f"{name}_bias", pointer(bias, torch.float32))
        error = ctypes.create_string_buffer(256)
        handle = self._library.openlora_decoder_create(
            c.Shape(
                **{name: getattr(shape, name) for name in shape.__slots__},
                max_positions=len(weights.rope_table),
                pages=pages,
                threads=threads,
            ),
            c.Weights(
                embedding=self._embedding.data_ptr(),
                layers=layers,
                norm=pointer(weights.norm, torch.float32),
                head=values(weights.head),
                rope=pointer(weights.rope_table, torch.float32),
            ),
            instructions.encode(),
            error,
        )
        if handle is None:
            raise KernelsUnavailable(error.value.decode())
        return int(handle)


_STRETCH, _DIFFERENCE, _LOW_RANK = range(3)


@dataclass(frozen=True, slots=True)
class _Alteration:
    """One of src/api.h, with its tensors alive."""

    kind: int
    layer: int
    part: int
    values: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    rank: int = 0
    scale: float = 0.0

    def packed(self) -> c.Alteration:
        pointers = (None if x is None else x.data_ptr() for x in (self.values, self.a, self.b))
        return c.Alteration(self.kind, self.layer, self.part, self.rank, self.scale, *pointers)


def _alterations(place: tuple[int, str], change: Change) -> Iterator[_Alteration]:
    """What a change is besides B · A of a matrix."""
    layer, part = place[0], _PARTS[place[1]]
    if isinstance(change, Difference):
        dtype = torch.float32 if change.weight.ndim == 1 else torch.bfloat16
        yield _Alteration(_DIFFERENCE, layer, part, change.weight.to(dtype).contiguous())
        return
    if layer == EMBEDDING:
        a, b = (x.to(torch.bfloat16).T.contiguous() for x in (change.a, change.b))
        yield _Alteration(_LOW_RANK, layer, part, None, a, b, len(change.a), change.scale)
    if change.stretch is not None:
        yield _Alteration(_STRETCH, layer, part, change.stretch.contiguous())


def _ints(values: Iterable[int]) -> "array[int]":
    return array("i", list(values))


def _refuse(refusals: Mapping[str, bool]) -> None:
    """Refuse by name what these kernels lack."""
    if found := [what for what, refused in refusals.items() if refused]:
        raise KernelsUnavailable(f"they do not support {found[0]}")
