"""A base model's files: the tensors of a Hugging Face directory or of a GGUF file, as they are stored."""

from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openlora.kernels.types import CodedWeight
from openlora.node.engine.gguf_file import GgufFile
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ModelError

_INDEX_MAX_BYTES = 64 << 20
_SAFETENSORS_DTYPES = {"F32", "F16", "BF16"}


class TensorSource(Protocol):
    """A checkpoint's tensors under their Hugging Face names. Every method raises ModelError."""

    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_float32(self, name: str) -> bool: ...
    def tensor(self, name: str) -> Tensor: ...
    def coded(self, name: str) -> CodedWeight | None: ...  # a matrix as the checkpoint keeps it, if in fewer bits


def open_source(path: Path, config: DecoderConfig) -> TensorSource:
    return SafetensorsSource(path) if path.is_dir() else GgufSource(GgufFile(path), config)


class Checkpoint:
    """The base model's files, read again for an adapter whose effect depends on the base's numbers."""

    def __init__(self, path: Path, config: DecoderConfig) -> None:
        self._path = path
        self._config = config
        self._stamps = _stamps(path)
        self._source: TensorSource | None = None

    def weight(self, module: str) -> Tensor:
        """A module's weight as it is stored. Raises ModelError, also if the files are not those of the start."""
        names = self._config.names
        stored = names.embedding if module == names.head and self._config.tied_head else module
        return self._tensor(f"{stored}.weight")

    def bias(self, module: str) -> Tensor:
        """As `weight`, for a layer that has one."""
        return self._tensor(f"{module}.bias")

    def matrix(self, module: str) -> Tensor:
        """A layer's weight as [out, in], the embedding's too."""
        weight = self.weight(module)
        return weight.T if module == self._config.names.embedding else weight

    def _tensor(self, name: str) -> Tensor:
        if _stamps(self._path) != self._stamps:
            raise ModelError(f"{self._path} was changed after the engine had loaded it; start the engine again")
        if self._source is None:
            self._source = open_source(self._path, self._config)
        return self._source.tensor(name)


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """Which files these are, and when they were written last."""
    try:
        stats = [file.stat() for file in (_weight_files(path) if path.is_dir() else [path])]
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


class SafetensorsSource:
    """The safetensors files of a Hugging Face directory: one, or those of its index."""

    def __init__(self, directory: Path) -> None:
        self._files: dict[Path, Any] = {}  # open safetensors files, whose package has no types
        self._where: dict[str, Path] = {}
        for path in _weight_files(directory):
            try:
                file: Any = safe_open(path, framework="pt")
                names = file.keys()
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
            for name in names:
                if name in self._where:
                    raise ModelError(f"{path}: tensor {name!r} stands in another file too")
                self._where[name] = path
            self._files[path] = file

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def is_float32(self, name: str) -> bool:
        return bool(self._slice(name).get_dtype() == "F32")

    def tensor(self, name: str) -> Tensor:
        dtype = self._slice(name).get_dtype()
        if dtype not in _SAFETENSORS_DTYPES:
            raise ModelError(f"tensor {name!r} is {dtype}, which is not served")
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def coded(self, name: str) -> CodedWeight | None:
        return None

    def _slice(self, name: str) -> Any:
        return self._files[self._where[name]].get_slice(name)


def _weight_files(directory: Path) -> list[Path]:
    """The single file where there is one, as for transformers and for the model's id."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    files = _indexed(index) if index.is_file() and not single.is_file() else [single]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: no such file; weights are read from safetensors, never from pickles (.bin)")
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        parsed = msgspec.json.decode(index.read_bytes()[:_INDEX_MAX_BYTES], type=_Index)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{index}: {error}") from error
    names = sorted(set(parsed.weight_map.values()))
    for name in names:
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: {name!r} is no file of this directory")
    return [index.with_name(name) for name in names]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class GgufSource:
    """A GGUF file; llama.cpp's order of the query and key rows is undone."""

    def __init__(self, file: GgufFile, config: DecoderConfig) -> None:
        self._file = file
        self._permuted = {"q_proj": config.heads, "k_proj": config.kv_heads} if config.family == "llama" else {}
        self.names = file.names
        self.shape = file.shape
        self.is_float32 = file.is_float32

    def tensor(self, name: str) -> Tensor:
        return self._ordered(name, torch.from_numpy(self._file.read(name)))

    def coded(self, name: str) -> CodedWeight | None:
        codes = self._file.codes(name)
        if codes is None:
            return None
        values, scales = (self._ordered(name, torch.from_numpy(x)) for x in (codes.values, codes.scales))
        minima = None if codes.minima is None else self._ordered(name, torch.from_numpy(codes.minima))
        return CodedWeight(values, scales, minima, codes.bits, group=values.shape[1] // scales.shape[1])

    def _ordered(self, name: str, rows: Tensor) -> Tensor:
        heads = self._permuted.get(name.split(".")[-2])
        return rows if heads is None else _halves_first(rows, heads)


def _halves_first(rows: Tensor, heads: int) -> Tensor:
    """From rows whose rotary pairs stand side by side, as llama.cpp's `llama` wants them, to first halves first."""
    pairs = rows.view(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
