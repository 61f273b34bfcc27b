"""One GGUF file: its metadata, and its tensors under their Hugging Face names; no torch is imported."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf.quants import dequantize

from openlora.node.engine.gguf_codes import Codes, read_codes
from openlora.node.errors import ModelError

_T = TypeVar("_T", int, float, str)
_WHOLE_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)", re.ASCII)
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies


class GgufFile:
    """A memory-mapped GGUF file whose tensor table has been checked against its size."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for what is no sound GGUF file."""
        self._path = path
        try:
            reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path}: not a readable GGUF file ({error})") from error
        self._fields = reader.fields
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            _check_bounds(path, tensor)
            name = hf_name(tensor.name)
            if name in self._tensors:
                raise ModelError(f"{path}: tensor {tensor.name!r} occurs twice")
            self._tensors[name] = tensor

    def value(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A metadata value. Raises ModelError if it is absent without a default, or not a `kind`."""
        if key not in self._fields:
            if default is None:
                raise ModelError(f"{self._path}: metadata {key!r} is missing")
            return default
        try:
            found: Any = self._fields[key].contents()
        except UnicodeDecodeError as error:
            raise ModelError(f"{self._path}: metadata {key!r} is not UTF-8 text") from error
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise ModelError(f"{self._path}: metadata {key!r} is not a single {kind.__name__}")
        return found

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] of a matrix; GGUF itself stores the fastest dimension first."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def is_float32(self, name: str) -> bool:
        return bool(self._tensors[name].tensor_type.name == "F32")

    def codes(self, name: str) -> Codes | None:
        """A matrix's own codes [out, in] and scales [out, groups], if it has any. Raises ModelError for scales that are
        infinite or NaN."""
        tensor, (rows, _) = self._tensors[name], self.shape(name)
        _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        codes = read_codes(tensor.tensor_type.name, tensor.data.view(np.uint8).reshape(-1, block_bytes))
        if codes is None:
            return None
        scales, minima = (
            codes.scales.reshape(rows, -1),
            None if codes.minima is None else codes.minima.reshape(rows, -1),
        )
        if not np.isfinite(scales).all() or not (minima is None or np.isfinite(minima).all()):
            raise ModelError(f"{self._path}: {tensor.name!r} has scales that are infinite or NaN")
        values = np.require(codes.values.reshape(rows, -1), np.int8, ["C", "W"])  # not the file's own memory
        return replace(codes, values=values, scales=scales, minima=minima)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor, dequantised, in memory of its own. Raises ModelError for a quantisation that is not known."""
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(f"{self._path}: {tensor.name!r} is {tensor.tensor_type.name}, not served") from error
        return np.require(values, np.float32, ["C", "W"]).reshape(self.shape(name))


def hf_name(name: str) -> str:
    """The tensor's name in a Hugging Face checkpoint; one unknown to us keeps its own, and is refused by the loader."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    parts = _LAYER_TENSOR.fullmatch(name)
    if parts is None or parts[2] not in _LAYER_NAMES:
        return name
    return f"model.layers.{int(parts[1])}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"


def _check_bounds(path: Path, tensor: Any) -> None:
    """The table's shape, type and offset describe bytes that the file has; Python's integers do not overflow."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
    items = math.prod(int(n) for n in tensor.shape)
    if items % block or int(tensor.n_bytes) != items // block * block_bytes:
        raise ModelError(f"{path}: tensor {tensor.name!r} has a size that does not fit its shape")
    if int(tensor.data_offset) + int(tensor.n_bytes) > path.stat().st_size:
        raise ModelError(f"{path}: tensor {tensor.name!r} reaches beyond the end of the file")
