"""What a GGUF file says before its tensors' bytes: values by key, and where each tensor lies.

    file   = "GGUF" ‖ u32(version) ‖ u64(tensors) ‖ u64(pairs) ‖ pair… ‖ tensor… ‖ padding ‖ bytes of the tensors
    pair   = text(key) ‖ u32(type) ‖ value;  an array is u32(type) ‖ u64(length) ‖ value…
    tensor = text(name) ‖ u32(dimensions) ‖ u64(size)… ‖ u32(type) ‖ u64(offset from the padding's end)
    text   = u64(length) ‖ UTF-8;  all integers little-endian

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package makes arrays of every token and merge, 10 s
for those of Llama 3; here a value is only passed over until it is asked for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.constants import GGUF_DEFAULT_ALIGNMENT

from openlora.node.errors import ModelError
from openlora.node.malformed import quote

_MAX_BYTES: Final = 128 << 20  # of a header; Llama 3's takes 8 MB
_MAX_TEXT_BYTES: Final = 1 << 16  # of what is read: a key, a name, a value asked for
_MAX_ENTRIES: Final = 1 << 16  # pairs, and tensors
_MAX_DIMENSIONS: Final = 4  # ggml's own
_VERSIONS: Final = (2, 3)
_TOO_SHORT: Final = f"its header goes on beyond the end of the file, or beyond {_MAX_BYTES >> 20} MiB"
_STRING, _ARRAY = 8, 9
_SCALARS: Final = {  # by GGUF's number of the type
    kind: Struct("<" + code) for kind, code in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class _Malformed(Exception):
    """What is wrong with the file."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` has the fastest dimension first; `offset` is the file's."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufHeader:
    """A memory-mapped GGUF file. Every tensor lies in the file, on its alignment, apart from all others."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for what is no sound GGUF file."""
        self.tensors: dict[str, GgufTensor] = {}
        self._path = path
        self._pairs: dict[str, tuple[int, int, int]] = {}  # where the pair begins, its value (the type first), its end
        if path.is_fifo():  # nobody may ever write to it
            raise ModelError(f"{path}: a pipe and no GGUF file; name the file itself")
        try:
            self._data = np.asarray(np.memmap(path, np.uint8, "r"))
            self._read(_Cursor(self._data.data))
        except (OSError, ValueError, _Malformed) as error:  # ValueError: an empty file is not mapped
            raise ModelError(f"{path}: not a readable GGUF file ({error})") from error

    def __iter__(self) -> Iterator[str]:
        """The keys of the metadata."""
        return iter(self._pairs)

    def value(self, key: str) -> int | float | str | None:
        """A number, a bool or a text; None for an array. Raises ModelError for text that is too long or not UTF-8."""
        cursor = _Cursor(self._data.data, self._pairs[key][1])
        kind = cursor.number(_U32)
        if kind == _ARRAY:
            return None
        try:
            name = f"metadata {quote(key)}"
            value: int | float | str = cursor.text(name) if kind == _STRING else cursor.number(_SCALARS[kind])
        except _Malformed as error:
            raise ModelError(f"{self._path}: {error}") from error
        return value

    def length(self, key: str) -> int | None:
        """How many values the array has; None for what is no array."""
        cursor = _Cursor(self._data.data, self._pairs[key][1])
        if cursor.number(_U32) != _ARRAY:
            return None
        cursor.number(_U32)
        count: int = cursor.number(_U64)
        return count

    def stored(self, key: str) -> bytes:
        """The pair's bytes: key, type and value."""
        begin, _, end = self._pairs[key]
        return self._data[begin:end].tobytes()

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as they are stored [rows, bytes of a row]: the file's own memory."""
        tensor = self.tensors[name]
        return self._data[tensor.offset : tensor.offset + tensor.nbytes].reshape(math.prod(tensor.shape[1:]), -1)

    def _read(self, cursor: "_Cursor") -> None:
        if cursor.take(4) != b"GGUF":
            raise _Malformed("it does not begin with GGUF")
        version = cursor.number(_U32)
        if version not in _VERSIONS:
            raise _Malformed(f"version {version} is not served; {', '.join(map(str, _VERSIONS))} are")
        tensors, pairs = cursor.number(_U64), cursor.number(_U64)
        if max(tensors, pairs) > _MAX_ENTRIES:
            raise _Malformed(f"{tensors} tensors and {pairs} metadata pairs; at most {_MAX_ENTRIES} are served")
        for _ in range(pairs):
            self._read_pair(cursor)
        table = [_read_tensor(cursor) for _ in range(tensors)]
        alignment = self.value("general.alignment") if "general.alignment" in self else GGUF_DEFAULT_ALIGNMENT
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _Malformed(f"general.alignment {quote(alignment)} is no power of two")
        self._place(table, alignment, start=-(-cursor.at // alignment) * alignment)

    def _read_pair(self, cursor: "_Cursor") -> None:
        begin, key, value = cursor.at, cursor.text("a key"), cursor.at
        if key in self._pairs:
            raise _Malformed(f"metadata {quote(key)} occurs twice")
        cursor.pass_value()
        self._pairs[key] = (begin, value, cursor.at)

    def _place(self, table: list[GgufTensor], alignment: int, start: int) -> None:
        end = start
        for tensor in sorted(table, key=lambda tensor: tensor.offset):
            offset = start + tensor.offset
            if tensor.name in self.tensors:
                raise _Malformed(f"tensor {quote(tensor.name)} occurs twice")
            if tensor.offset % alignment:
                raise _Malformed(f"tensor {quote(tensor.name)} lies off the alignment of {alignment} bytes")
            if offset < end:
                raise _Malformed(f"tensor {quote(tensor.name)} overlaps another")
            end = offset + tensor.nbytes
            if end > len(self._data):
                raise _Malformed(f"tensor {quote(tensor.name)} reaches beyond the end of the file")
            self.tensors[tensor.name] = GgufTensor(tensor.name, tensor.type, tensor.shape, offset, tensor.nbytes)


class _Cursor:
    """Reads the header from `at` on. Every method raises _Malformed where the header would end first."""

    def __init__(self, data: memoryview, at: int = 0) -> None:
        self.at = at
        self._view = data[:_MAX_BYTES]

    def number(self, kind: Struct) -> Any:
        begin = self._pass(kind.size)
        return kind.unpack_from(self._view, begin)[0]

    def take(self, count: int) -> bytes:
        begin = self._pass(count)
        return bytes(self._view[begin : self.at])

    def text(self, what: str) -> str:
        length = self.number(_U64)
        if length > _MAX_TEXT_BYTES:
            raise _Malformed(f"{what} is a text of {length} bytes; at most {_MAX_TEXT_BYTES} are read")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise _Malformed(f"{what} is not UTF-8 text") from error

    def pass_value(self) -> None:
        kind, length = self.number(_U32), 1
        if kind == _ARRAY:
            kind, length = self.number(_U32), self.number(_U64)
        if kind == _STRING:
            self._pass_texts(length)
        elif kind in _SCALARS:
            self._pass(length * _SCALARS[kind].size)
        else:
            raise _Malformed("an array of arrays" if kind == _ARRAY else f"metadata of an unknown type, {kind}")

    def _pass_texts(self, count: int) -> None:
        view, at, last, unpack = self._view, self.at, len(self._view) - 8, _U64.unpack_from  # a vocabulary is long
        for _ in range(count):
            if at > last:
                raise _Malformed(_TOO_SHORT)
            at += 8 + unpack(view, at)[0]
        self._pass(at - self.at)

    def _pass(self, count: int) -> int:
        begin = self.at
        if count > len(self._view) - begin:
            raise _Malformed(_TOO_SHORT)
        self.at = begin + count
        return begin


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    """Its offset is still that of the table."""
    name, dimensions = cursor.text("a tensor's name"), cursor.number(_U32)
    if dimensions > _MAX_DIMENSIONS:
        raise _Malformed(f"tensor {quote(name)} has {dimensions} dimensions")
    shape = tuple(cursor.number(_U64) for _ in range(dimensions))
    kind, offset = cursor.number(_U32), cursor.number(_U64)
    try:
        type_ = GGMLQuantizationType(kind)
    except ValueError:
        raise _Malformed(f"tensor {quote(name)} is of an unknown type, {kind}") from None
    block, block_bytes = GGML_QUANT_SIZES[type_]
    items = math.prod(shape)  # Python's integers do not overflow
    if items == 0 or math.prod(shape[:1]) % block:
        raise _Malformed(f"tensor {quote(name)} has a shape that {type_.name} cannot have, {quote(shape)}")
    return GgufTensor(name, type_, shape, offset, items // block * block_bytes)
