"""A base model's weights, from a Hugging Face directory or a GGUF file, as the decoder wants them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openlora.kernels.quantised import dequantise, quantise_int4, quantise_int8, stack, to_device
from openlora.kernels.types import CodedWeight, Int8Weight, Weight
from openlora.node.engine.gguf_file import ROPE_FACTORS, GgufFile
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import DecoderWeights, Layer, Norm, Projection
from openlora.node.errors import ModelError

_INDEX_MAX_BYTES = 64 << 20
_HARMLESS = re.compile(r".*rotary_emb\.inv_freq|" + re.escape(ROPE_FACTORS))
FORMS = ("auto", "full", "int8", "int4")
_SAFETENSORS_DTYPES = {"F32", "F16", "BF16"}


class TensorSource(Protocol):
    """A checkpoint's tensors under their Hugging Face names. Every method raises ModelError."""

    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_float32(self, name: str) -> bool: ...
    def tensor(self, name: str) -> Tensor: ...
    def coded(self, name: str) -> CodedWeight | None: ...  # a matrix as the checkpoint keeps it, if in fewer bits


CPU = torch.device("cpu")


def load_weights(
    path: Path, config: DecoderConfig, dtype: str, form: str = "auto", device: torch.device = CPU
) -> DecoderWeights:
    """Read the checkpoint at `path` into the device's memory; dtype is "bfloat16", "float32" or "auto" (see
    `choose_dtype`).

    `form` is what the matrices are kept in: "full", all in the dtype; "int8" or "int4", rounded by the rules of
    openlora.kernels.quantised, except that "int4" leaves alone what has 4 bits already, and gives the head 8; "auto",
    "full" but for the matrices whose checkpoint keeps 4 to 8 bits: in bfloat16 those stay as they are, which changes no
    result.

    Raises ModelError if a tensor is missing, misshapen, of a kind that is not served, or not the model's.
    """
    source = open_source(path, config)
    _check_tensors(source, config)
    if form not in FORMS:
        raise ModelError(f"weights {form!r} are not served; {', '.join(map(repr, FORMS))} are")
    chosen = choose_dtype(dtype, source, f"{config.names.embedding}.weight", device)
    kept = "full" if form == "auto" and chosen == torch.float32 else form
    return build_weights(source, config, chosen, kept, device)


def build_weights(
    source: TensorSource, config: DecoderConfig, dtype: torch.dtype, form: str, device: torch.device
) -> DecoderWeights:
    """As load_weights, from a source that has exactly the model's tensors."""
    return _Builder(source, config, dtype, form, device).weights()


def open_source(path: Path, config: DecoderConfig) -> TensorSource:
    return SafetensorsSource(path) if path.is_dir() else GgufSource(GgufFile(path), config)


class Checkpoint:
    """The base model's files, read again for an adapter whose effect depends on the base's numbers."""

    def __init__(self, path: Path, config: DecoderConfig) -> None:
        self._path = path
        self._config = config
        self._stamps = _stamps(path)

    def weight(self, module: str) -> Tensor:
        """A module's weight as it is stored. Raises ModelError, also if the files are not those of the start."""
        if _stamps(self._path) != self._stamps:
            raise ModelError(f"{self._path} was changed after the engine had loaded it; start the engine again")
        names = self._config.names
        stored = names.embedding if module == names.head and self._config.tied_head else module
        return open_source(self._path, self._config).tensor(f"{stored}.weight")

    def matrix(self, module: str) -> Tensor:
        """A layer's weight as [out, in], the embedding's too."""
        weight = self.weight(module)
        return weight.T if module == self._config.names.embedding else weight


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """Which files these are, and when they were written last."""
    try:
        stats = [file.stat() for file in (_weight_files(path) if path.is_dir() else [path])]
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def choose_dtype(wanted: str, source: TensorSource, embedding: str, device: torch.device = CPU) -> torch.dtype:
    """ "auto": bfloat16 where neither the checkpoint nor the device loses by it, else float32."""
    if wanted == "auto":
        exact = source.is_float32(embedding)
        wanted = "float32" if exact or not _bfloat16_is_fast(device) else "bfloat16"
    if wanted not in ("bfloat16", "float32"):
        raise ModelError(f"dtype {wanted!r} is not served; 'auto', 'bfloat16' and 'float32' are")
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Whether torch's products take bfloat16 there without emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _check_tensors(source: TensorSource, config: DecoderConfig) -> None:
    expected, found = config.tensors(), source.names()
    if missing := expected.keys() - found:
        raise ModelError(f"the checkpoint lacks {len(missing)} tensors, one of them {min(missing)!r}")
    ignored = {f"{config.names.head}.weight"} if config.tied_head else set()
    unknown = {name for name in found - expected.keys() - ignored if not _HARMLESS.fullmatch(name)}
    if unknown:
        raise ModelError(f"the checkpoint holds {len(unknown)} tensors not of this model, one {min(unknown)!r}")
    for name, shape in expected.items():
        if source.shape(name) != shape:
            raise ModelError(f"tensor {name!r} has shape {source.shape(name)}, not {shape}")
    for head in ignored & found:
        if not torch.equal(source.tensor(head), source.tensor(f"{config.names.embedding}.weight")):
            raise ModelError(f"{head!r} is not the embedding that tie_word_embeddings says it is; set that to false")


class _Builder:
    """Stacks, casts and moves the checkpoint's tensors, one at a time."""

    def __init__(
        self, source: TensorSource, config: DecoderConfig, dtype: torch.dtype, form: str, device: torch.device
    ) -> None:
        self._source = source
        self._config = config
        self._dtype = dtype
        self._form = form
        self._device = device
        self._shapes = config.tensors()
        self._head_names = {f"{config.names.head}.weight", f"{config.names.embedding}.weight"}  # of a tied head

    def weights(self) -> DecoderWeights:
        names = self._config.names
        embedding = self._one(f"{names.embedding}.weight")
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(f"{names.layers}.{i}.") for i in range(self._config.layers)),
            norm=self._norm(names.norm),
            head=self._tied_head(embedding) if self._config.tied_head else self._projection(names.head),
            form="full" if self._form == "auto" else self._form,
        )

    def _layer(self, prefix: str) -> Layer:
        names = self._config.names
        return Layer(
            attention_norm=self._norm(prefix + names.attention_norm),
            qkv=self._projection(*(prefix + name for name in names.qkv)),
            q_norm=self._optional_norm(prefix, names.q_norm),
            k_norm=self._optional_norm(prefix, names.k_norm),
            o=self._projection(prefix + names.o),
            post_attention_norm=self._optional_norm(prefix, names.post_attention_norm),
            mlp_norm=self._norm(prefix + names.mlp_norm),
            gate_up=self._projection(*(prefix + name for name in names.up)),
            down=self._projection(prefix + names.down),
            post_mlp_norm=self._optional_norm(prefix, names.post_mlp_norm),
        )

    def _tied_head(self, embedding: Tensor) -> Projection:
        weight = self._reduced(f"{self._config.names.embedding}.weight")
        rows = slice(0, self._config.vocab_size)
        moved = embedding if weight is None else to_device(weight, self._device)
        return Projection(moved, None, ((self._config.names.head, rows),))

    def _norm(self, module: str) -> Norm:
        bias = self._float(f"{module}.bias") if self._config.layer_norms else None
        return Norm(module, self._float(f"{module}.weight") + self._config.norm_offset, bias)

    def _optional_norm(self, prefix: str, name: str | None) -> Norm | None:
        return None if name is None else self._norm(prefix + name)

    def _projection(self, *modules: str) -> Projection:
        parts, end = [], 0
        for module in modules:
            start, end = end, end + self._shapes[f"{module}.weight"][0]
            parts.append((module, slice(start, end)))
        weight = self._matrices([f"{module}.weight" for module in modules])
        biased = f"{modules[0]}.bias" in self._shapes
        return Projection(weight, self._stacked(f"{m}.bias" for m in modules) if biased else None, tuple(parts))

    def _stacked(self, names: Iterable[str]) -> Tensor:
        return torch.cat([self._one(name) for name in names])

    def _matrices(self, names: Sequence[str]) -> Weight:
        weights: list[Weight] = []
        for name in names:
            reduced = self._reduced(name)
            weights.append(self._one(name) if reduced is None else to_device(reduced, self._device))
        if len({type(weight) for weight in weights}) > 1:
            weights = [dequantise(weight).to(self._dtype) for weight in weights]
        return stack(weights)

    def _reduced(self, name: str) -> Int8Weight | CodedWeight | None:
        """A matrix in fewer bits than the dtype's, if the form has it so."""
        match self._form:
            case "full":
                return None
            case "int8":
                return quantise_int8(self._stored(name))
        coded = self._source.coded(name)
        if self._form == "int4" and (coded is None or coded.bits != 4):
            tensor = self._stored(name)
            return quantise_int8(tensor) if name in self._head_names else quantise_int4(tensor)
        return coded

    def _stored(self, name: str) -> Tensor:
        return _finite(name, self._source.tensor(name))

    def _one(self, name: str) -> Tensor:
        return _finite(name, self._source.tensor(name).to(self._device, self._dtype))

    def _float(self, name: str) -> Tensor:
        return _finite(name, self._source.tensor(name).to(self._device, torch.float32))


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not all(extreme.isfinite() for extreme in tensor.aminmax()):  # NaN is both
        raise ModelError(f"tensor {name!r} holds NaN or Inf, or numbers beyond {tensor.dtype}")
    return tensor


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
    index = directory / "model.safetensors.index.json"
    files = _indexed(index) if index.is_file() else [directory / "model.safetensors"]
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
