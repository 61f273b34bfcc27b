"""An adapter directory in PEFT's LoRA format, checked against one base model and read without torch or peft.

Exactly two files: `adapter_config.json` and `adapter_model.safetensors`. What `read_adapter` returns is safe to compute
with: complete pairs, exact shapes, and no NaN or Inf before or after the cast to bfloat16 and the scaling of B.
"""

import math
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from openlora.node.adapters.config import CONFIG_FILE, MAX_CONFIG_BYTES, AdapterConfig, names, parse_config
from openlora.node.adapters.safetensors import ITEM_BYTES, MAX_HEADER_BYTES, RawTensor, parse_tensors
from openlora.node.adapters.strict_json import quote
from openlora.node.errors import AdapterError

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "AdapterWeights", "Factor", "LinearShape", "RawTensor", "read_adapter"]

WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_RECIPE_WEIGHT: Final = 10.0  # a recipe scales an adapter by at most this
BFLOAT16_MAX: Final = 3.3895313892515355e38
_KEY_PREFIX: Final = "base_model.model."
_CHUNK_ITEMS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer y = W·x of the base model, W of shape [out_features, in_features]."""

    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class Factor:
    """One layer's low-rank term: scale · B·A·x with A [rank, in_features] and B [out_features, rank]."""

    a: RawTensor
    b: RawTensor
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """A whole adapter. `rank` is the largest of its layers', `nbytes` the size of the tensors as stored."""

    rank: int
    nbytes: int
    factors: Mapping[str, Factor]

    def digest(self) -> bytes:
        """Equal for equal effects alone: of every layer's name, scale, and factors as they are stored."""
        digest = blake2b(digest_size=32)
        for module, factor in sorted(self.factors.items()):
            parts = [(raw.dtype, *raw.shape) for raw in (factor.a, factor.b)]
            digest.update(f"{module} {factor.scale.hex()} {parts}\n".encode())
            digest.update(factor.a.data)
            digest.update(factor.b.data)
        return digest.digest()


def read_adapter(directory: Path, layout: Mapping[str, LinearShape]) -> AdapterWeights:
    """Read and check the adapter in `directory` for a base model with the linear layers of `layout`.

    `layout` keys are module names as PEFT writes them, less `base_model.model.`: "model.layers.0.self_attn.q_proj".
    The tensors are views of the memory-mapped file, which must not be written to while they live.
    Raises AdapterError with one sentence that names the file, key or tensor.
    """
    _check_listing(directory)
    config = parse_config(bytes(_contents(directory / CONFIG_FILE, MAX_CONFIG_BYTES)))
    modules = _targeted(config, layout)
    numbers = sum(config.rank_of(name) * (layout[name].out_features + layout[name].in_features) for name in modules)
    weights = _contents(directory / WEIGHTS_FILE, 8 + MAX_HEADER_BYTES + 4 * numbers)
    tensors = parse_tensors(weights, WEIGHTS_FILE)
    factors = {module: _factor(module, layout[module], config, tensors) for module in modules}
    if tensors:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(next(iter(tensors)))} belongs to no layer of target_modules")
    return AdapterWeights(
        rank=max(factor.a.shape[0] for factor in factors.values()),
        nbytes=sum(len(factor.a.data) + len(factor.b.data) for factor in factors.values()),
        factors=factors,
    )


def _check_listing(directory: Path) -> None:
    try:
        with os.scandir(directory) as entries:
            found = {entry.name for entry, _ in zip(entries, range(8), strict=False)}
    except OSError as error:
        raise AdapterError(f"{directory}: {error.strerror}") from error
    if extra := found - {CONFIG_FILE, WEIGHTS_FILE}:
        raise AdapterError(f"{quote(min(extra))} is no part of an adapter: keep {CONFIG_FILE} and {WEIGHTS_FILE} alone")
    if missing := {CONFIG_FILE, WEIGHTS_FILE} - found:
        raise AdapterError(f"{min(missing)} is missing from the adapter")


def _contents(path: Path, max_bytes: int) -> memoryview:
    """A regular file's bytes, mapped read-only: no symbolic link, and a pipe or device is refused without waiting."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AdapterError(f"{path.name}: not a plain file")
            if not 0 < status.st_size <= max_bytes:
                raise AdapterError(f"{path.name}: {status.st_size} bytes, where 1 to {max_bytes} can be right")
            return memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise AdapterError(f"{path.name}: cannot be read as a plain file ({error.strerror})") from error


def _targeted(config: AdapterConfig, layout: Mapping[str, LinearShape]) -> list[str]:
    """The layers that the adapter changes; every name in its configuration must name one of them."""
    modules = [module for module in layout if config.targets(module)]
    for key in ("target_modules", "rank_pattern", "alpha_pattern"):
        for name in getattr(config, key):
            if not any(names(name, module) for module in (layout if key == "target_modules" else modules)):
                raise AdapterError(
                    f"{CONFIG_FILE}: {key} names {quote(name)}, which is no linear layer of this base model"
                )
    return modules


def _factor(module: str, shape: LinearShape, config: AdapterConfig, tensors: dict[str, RawTensor]) -> Factor:
    """The module's pair, taken out of `tensors`."""
    rank, scale = config.rank_of(module), config.scale_of(module)
    growth = max(1.0, abs(scale) * MAX_RECIPE_WEIGHT)
    if growth > BFLOAT16_MAX:  # would be Inf, and Inf · 0 is NaN
        raise AdapterError(f"{CONFIG_FILE}: the scale {scale:g} of {module} overflows bfloat16")
    a = _take(tensors, f"{_KEY_PREFIX}{module}.lora_A.weight", (rank, shape.in_features))
    b = _take(tensors, f"{_KEY_PREFIX}{module}.lora_B.weight", (shape.out_features, rank))
    _check_numbers(f"{_KEY_PREFIX}{module}.lora_A.weight", a, 1.0)
    _check_numbers(f"{_KEY_PREFIX}{module}.lora_B.weight", b, growth)
    return Factor(a, b, scale)


def _take(tensors: dict[str, RawTensor], name: str, shape: tuple[int, int]) -> RawTensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} is missing")
    if tensor.shape != shape:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} has shape {tensor.shape}, not {shape}")
    return tensor


def _check_numbers(name: str, tensor: RawTensor, growth: float) -> None:
    """No NaN or Inf as stored, nor in bfloat16 once multiplied by `growth`."""
    largest = largest_magnitude(tensor)
    if not math.isfinite(largest):
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} holds NaN or Inf")
    if largest * growth > BFLOAT16_MAX:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} overflows bfloat16 once cast and scaled")


def largest_magnitude(tensor: RawTensor) -> float:
    """max |x|, NaN or Inf if the tensor holds one.

    Without its sign bit a float's pattern, read as an integer, orders as the magnitude does, with Inf and then NaN on
    top: one integer maximum finds them all.
    """
    patterns: npt.NDArray[np.uint16 | np.uint32]
    patterns = np.frombuffer(tensor.data, np.uint32 if ITEM_BYTES[tensor.dtype] == 4 else np.uint16)
    magnitude_bits = patterns.dtype.type(np.iinfo(patterns.dtype).max >> 1)
    chunks = range(0, len(patterns), _CHUNK_ITEMS)
    top = max(int((patterns[i : i + _CHUNK_ITEMS] & magnitude_bits).max()) for i in chunks)
    if tensor.dtype == "F16":
        return float(np.uint16(top).view(np.float16))
    return float(np.uint32(top << 16 if tensor.dtype == "BF16" else top).view(np.float32))
