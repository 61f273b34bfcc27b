"""Which base model this is: an id that follows from its weights and its tokenizer."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from openlora.node.engine.gguf_header import GgufHeader
from openlora.node.errors import ModelError
from openlora.node.malformed import quote

HashProgress = Callable[[int, int], None]  # bytes hashed so far, bytes in all

MAX_HEADER_BYTES: Final = 100 * 1024 * 1024  # the bound of the safetensors library itself
_MAX_SIZE: Final = 2**62  # of a dimension, and of an offset into a file
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor's bytes lie: `shape` and `dtype` as its file states them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def base_model_id(path: Path, progress: HashProgress | None = None) -> bytes:
    """The 32 bytes that name the base model at `path`, a Hugging Face directory or a GGUF file.

        id      = sha256( u32(n) ‖ tensor₁ ‖ … ‖ tensorₙ ‖ tokenizer )
        tensor  = text(name) ‖ text(dtype) ‖ u32(dimensions) ‖ u64(size)… ‖ sha256(bytes as stored)
        text(s) = u32(length) ‖ UTF-8;  all integers big-endian;  tensors sorted by the UTF-8 of their names

    A directory's dtype and shape are those of the safetensors header, and `tokenizer` is the sha256 of tokenizer.json.
    A GGUF file's are its type's name ("Q4_1") and the sizes in GGUF's order, and `tokenizer` is the sha256 of its
    key-value pairs whose key begins with "tokenizer.", as stored, sorted by key. A model and its quantisation differ.

    Reads every byte once, in pieces of 1 MiB. Raises ModelError if the model is incomplete or malformed.
    """
    try:
        if path.is_file():
            header = GgufHeader(path)
            return _identity(_gguf_tensors(path, header), _gguf_tokenizer(header), progress)
        return _identity(_directory_tensors(path), _file_sha256(path / "tokenizer.json"), progress)
    except OSError as error:
        raise ModelError(
            f"{error.filename or path}: {error.strerror}; give a Hugging Face directory or a GGUF file"
        ) from error


def _identity(tensors: Sequence[_Tensor], tokenizer: bytes, progress: HashProgress | None) -> bytes:
    done, total = 0, sum(tensor.nbytes for tensor in tensors)
    identity = sha256(_u32(len(tensors)))
    for tensor in sorted(tensors, key=lambda tensor: tensor.name.encode()):
        content = sha256()
        for chunk in _read(tensor):
            content.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
        shape = _u32(len(tensor.shape)) + b"".join(size.to_bytes(8, "big") for size in tensor.shape)
        identity.update(_text(tensor.name) + _text(tensor.dtype) + shape + content.digest())
    identity.update(tokenizer)
    return identity.digest()


def _read(tensor: _Tensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ModelError(f"{tensor.file}: ends before its tensor {tensor.name!r} does")
            left -= len(chunk)
            yield chunk


def _directory_tensors(directory: Path) -> list[_Tensor]:
    """Of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return _safetensors(single)
    weight_map = _json(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_plain_name(shard) for shard in weight_map.values()):
        raise ModelError(f"{index}: weight_map must map tensors to files of the same folder")
    tensors = [tensor for shard in sorted(set(weight_map.values())) for tensor in _safetensors(directory / shard)]
    if {tensor.name: tensor.file.name for tensor in tensors} != weight_map or len(tensors) != len(weight_map):
        raise ModelError(f"{index}: the shards hold other tensors than weight_map says")
    return tensors


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and Path(name).name == name


def _safetensors(path: Path) -> list[_Tensor]:
    with _opened(path) as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ModelError(f"{path}: not a safetensors file")
        header = _json(file.read(header_bytes), path)
    header.pop("__metadata__", None)
    return [_safetensor(path, name, entry, 8 + header_bytes) for name, entry in header.items()]


def _safetensor(path: Path, name: str, entry: Any, data_start: int) -> _Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            if _are_sizes([*shape, begin, end]) and begin <= end and (name + dtype).isprintable():
                return _Tensor(name, dtype, tuple(shape), path, data_start + begin, end - begin)
    raise ModelError(f"{path}: malformed safetensors header, at tensor {quote(name)}; fetch the model again")


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _gguf_tensors(path: Path, header: GgufHeader) -> list[_Tensor]:
    return [
        _Tensor(tensor.name, tensor.type.name, tensor.shape, path, tensor.offset, tensor.nbytes)
        for tensor in header.tensors.values()
    ]


def _gguf_tokenizer(header: GgufHeader) -> bytes:
    content = sha256()
    for key in sorted(header):
        if key.startswith("tokenizer."):
            content.update(header.stored(key))
    return content.digest()


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: malformed JSON") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def _file_sha256(path: Path) -> bytes:
    with _opened(path) as file:
        return file_digest(file, "sha256").digest()


def _opened(path: Path) -> BufferedReader:
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise ModelError(f"{path}: no plain file; fetch the model again")
    return path.open("rb")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _text(value: str) -> bytes:
    return _u32(len(value.encode())) + value.encode()
