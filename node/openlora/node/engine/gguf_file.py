"""One GGUF file: its metadata, and its tensors under their Hugging Face names; no torch is imported."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from openlora.node.engine.gguf_codes import Codes, read_codes
from openlora.node.engine.gguf_header import GgufHeader, GgufTensor
from openlora.node.errors import ModelError
from openlora.node.malformed import quote

_T = TypeVar("_T", bool, int, float, str)
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
    """A memory-mapped GGUF file's metadata by kind, and its tensors [out, in] by their Hugging Face names."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for what is no sound GGUF file."""
        self._path = path
        self._header = GgufHeader(path)
        self._tensors: dict[str, GgufTensor] = {}
        for tensor in self._header.tensors.values():
            name = hf_name(tensor.name)
            if name in self._tensors:
                raise ModelError(f"{path}: tensor {quote(tensor.name)} occurs twice")
            self._tensors[name] = tensor

    def value(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A metadata value. Raises ModelError if it is absent without a default, or not a `kind`."""
        if key not in self._header:
            if default is None:
                raise ModelError(f"{self._path}: metadata {key!r} is missing")
            return default
        found = self._header.value(key)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or isinstance(found, bool) is not (kind is bool):
            raise ModelError(f"{self._path}: metadata {key!r} is not a single {kind.__name__}")
        return found

    def length(self, key: str) -> int:
        """How many values an array of the metadata has, one at least. Raises ModelError."""
        if key not in self._header:
            raise ModelError(f"{self._path}: metadata {key!r} is missing")
        if not (count := self._header.length(key)):
            raise ModelError(f"{self._path}: metadata {key!r} is no array with anything in it")
        return count

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] of a matrix; GGUF itself stores the fastest dimension first."""
        return self._tensors[name].shape[::-1]

    def is_float32(self, name: str) -> bool:
        return self._tensors[name].type is GGMLQuantizationType.F32

    def codes(self, name: str) -> Codes | None:
        """A matrix's own codes [out, in] and scales [out, groups], if it has any. Raises ModelError for scales that are
        infinite or NaN."""
        tensor, (rows, _) = self._tensors[name], self.shape(name)
        _, block_bytes = GGML_QUANT_SIZES[tensor.type]
        codes = read_codes(tensor.type.name, self._header.rows(tensor.name).reshape(-1, block_bytes))
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
            values = dequantize(self._header.rows(tensor.name), tensor.type)
        except NotImplementedError as error:
            raise ModelError(f"{self._path}: {tensor.name!r} is {tensor.type.name}, not served") from error
        return np.require(values, np.float32, ["C", "W"]).reshape(self.shape(name))


def hf_name(name: str) -> str:
    """The tensor's name in a Hugging Face checkpoint; one unknown to us keeps its own, and is refused by the loader."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    parts = _LAYER_TENSOR.fullmatch(name)
    if parts is None or parts[2] not in _LAYER_NAMES:
        return name
    return f"model.layers.{int(parts[1])}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
