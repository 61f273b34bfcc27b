"""The safetensors container, read as from a stranger: float vectors and matrices that tile the file exactly.

Layout (https://huggingface.co/docs/safetensors): u64 little-endian header length · JSON header · data. The header maps
each name to {dtype, shape, data_offsets}, and optionally `__metadata__` to an object of strings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from openlora.node.adapters.strict_json import parse_object
from openlora.node.errors import AdapterError
from openlora.node.malformed import quote

MAX_HEADER_BYTES: Final = 1024 * 1024
MAX_TENSORS: Final = 4096
MAX_DIMENSION: Final = 2**31 - 1

Dtype = Literal["F32", "F16", "BF16"]
ITEM_BYTES: Final[Mapping[Dtype, int]] = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A vector, or a row-major matrix, as it lies in the file; `data` is a read-only view, aligned to the element."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class _Span:
    begin: int
    end: int
    dtype: Dtype
    shape: tuple[int, ...]


def parse_tensors(contents: memoryview, file: str) -> dict[str, RawTensor]:
    """All tensors of a whole file by name, or an AdapterError that names the tensor.

    Promise: every tensor lies inside the file, is non-empty, has exactly the bytes its shape needs, overlaps no other,
    and together they leave no byte of the file unaccounted for.
    """
    if len(contents) < 8:
        raise AdapterError(f"{file}: too short to be a safetensors file")
    header_bytes = int.from_bytes(contents[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise AdapterError(f"{file}: the header is larger than {MAX_HEADER_BYTES // 1024} KiB")
    data_start = 8 + header_bytes
    if data_start > len(contents):
        raise AdapterError(f"{file}: ends inside its header")
    header = parse_object(bytes(contents[8:data_start]), f"{file} header")
    _check_metadata(header.pop("__metadata__", {}), file)
    if len(header) > MAX_TENSORS:
        raise AdapterError(f"{file}: more than {MAX_TENSORS} tensors")
    spans = {name: _span(name, entry, file) for name, entry in header.items()}
    _check_tiling(spans, len(contents) - data_start, file)
    tensors = {}
    for name, span in spans.items():
        start = data_start + span.begin
        if start % ITEM_BYTES[span.dtype]:
            raise AdapterError(f"{file}: tensor {quote(name)} is not aligned to its elements")
        tensors[name] = RawTensor(span.dtype, span.shape, contents[start : data_start + span.end].toreadonly())
    return tensors


def _check_metadata(metadata: Any, file: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{file}: __metadata__ must map names to text")


def _span(name: str, entry: Any, file: str) -> _Span:
    where = f"{file}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise AdapterError(f"{where} must have exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = next((known for known in ITEM_BYTES if known == entry["dtype"]), None)
    if dtype is None:
        raise AdapterError(f"{where} has dtype {quote(entry['dtype'])}; F32, F16 and BF16 are served")
    if not _are_integers(shape, (1, 2)) or not all(1 <= size <= MAX_DIMENSION for size in shape):
        raise AdapterError(f"{where} must have one or two dimensions from 1 to {MAX_DIMENSION}, not {quote(shape)}")
    if not _are_integers(offsets, (2,)) or not 0 <= offsets[0] <= offsets[1]:
        raise AdapterError(f"{where} has malformed data_offsets {quote(offsets)}")
    # Python's integers do not wrap: 2^31 · 2^31 · 4 stays a number that no file has.
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise AdapterError(f"{where} has not the number of bytes that its shape needs")
    return _Span(offsets[0], offsets[1], dtype, tuple(shape))


def _are_integers(value: Any, counts: tuple[int, ...]) -> bool:
    return isinstance(value, list) and len(value) in counts and all(type(one) is int for one in value)


def _check_tiling(spans: Mapping[str, _Span], data_bytes: int, file: str) -> None:
    expected = 0
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.begin < expected:
            raise AdapterError(f"{file}: tensor {quote(name)} overlaps another")
        if span.begin > expected:
            raise AdapterError(f"{file}: a hole lies before tensor {quote(name)}")
        expected = span.end
    if expected > data_bytes:
        raise AdapterError(f"{file}: ends {expected - data_bytes} bytes before its last tensor does")
    if expected < data_bytes:
        raise AdapterError(f"{file}: {data_bytes - expected} bytes follow the last tensor")
