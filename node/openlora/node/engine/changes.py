"""From an adapter's tensors to what it adds to each weight of the base model."""

import numpy as np
import torch
from torch import Tensor

from openlora.kernels.reference import row_norms
from openlora.kernels.types import Change, Difference, LoraFactors
from openlora.node.adapters.format import BFLOAT16_MAX, MAX_RECIPE_WEIGHT, AdapterWeights, Factor, TrainedTokens
from openlora.node.adapters.modules import HEAD, bias_of
from openlora.node.adapters.safetensors import RawTensor
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.errors import AdapterError, ModelError

_NUMPY_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def nbytes(weights: AdapterWeights, dtype: torch.dtype) -> int:
    """What `changes` will take, known before it is read."""
    low_rank = sum(dtype.itemsize * (_size(f.a) + _size(f.b)) for f in weights.factors.values())
    stretches = sum(torch.float32.itemsize * _size(f.magnitude) for f in weights.factors.values() if f.magnitude)
    for trained in weights.trained:
        tokens, hidden = trained.rows.shape
        low_rank += dtype.itemsize * tokens * (trained.vocab_size + hidden) * len(trained.modules)
    biased = dict(weights.biases) | {module: f.bias for module, f in weights.factors.items() if f.bias is not None}
    vectors = stretches + sum(torch.float32.itemsize * _size(bias) for bias in biased.values())
    return low_rank + vectors + sum(_kept(raw, dtype).itemsize * _size(raw) for raw in weights.replaced.values())


def changes(weights: AdapterWeights, base: Checkpoint, dtype: torch.dtype, device: torch.device) -> dict[str, Change]:
    """By module or its bias, in the dtype that the model computes in. An adapter is the sum of the differences that it
    makes to the base's weights, so that a recipe's effect is Σ wᵢ·ΔWᵢ whatever the kinds of its adapters.

    Raises AdapterError if the effect depends on the base's numbers and these do not do, and where the device's memory
    ends.
    """
    found: dict[str, Change] = {}
    try:
        for module, copy in weights.copies.items():
            _check_copy(module, _tensor(copy), base.weight(module), dtype)
        for module, factor in weights.factors.items():
            plain = LoraFactors(_tensor(factor.a).to(dtype), _tensor(factor.b).to(dtype), factor.scale)
            found[module] = plain if factor.magnitude is None else _stretched(module, plain, factor, base)
        for module, raw in weights.replaced.items():
            difference = _tensor(raw).float() - base.weight(module).to(_kept(raw, dtype)).float()
            found[module] = Difference(difference.to(_kept(raw, dtype)))
        found |= _of_biases(weights, base, dtype)
        for trained in weights.trained:
            found |= _of_tokens(trained, base, dtype)
    except ModelError as error:
        raise AdapterError(f"the base's weights are needed for this adapter and cannot be read: {error}") from error
    try:
        return {module: _moved(change, device) for module, change in found.items()}
    except torch.OutOfMemoryError as error:
        raise AdapterError(f"the adapter does not fit into the device's memory: {error}") from error


def _of_tokens(trained: TrainedTokens, base: Checkpoint, dtype: torch.dtype) -> dict[str, Change]:
    """ΔW = Σ_t e_t ⊗ (row_t − W_t): of as low a rank as there are tokens."""
    tokens = list(trained.tokens)
    one_hot = torch.zeros(len(tokens), trained.vocab_size, dtype=dtype)
    one_hot[range(len(tokens)), tokens] = 1
    found: dict[str, Change] = {}
    for module in trained.modules:
        was = base.weight(module)[tokens].to(dtype).float()
        difference = (_tensor(trained.rows).float() - was).to(dtype)
        a, b = (difference, one_hot.T) if module == HEAD else (one_hot, difference.T)
        found[module] = LoraFactors(a, b.contiguous(), 1.0)
    return found


def _of_biases(weights: AdapterWeights, base: Checkpoint, dtype: torch.dtype) -> dict[str, Change]:
    """Δb = b' − b + scale · lora_B.bias, in float32."""
    added = {
        module: factor.scale * _tensor(factor.bias).float()
        for module, factor in weights.factors.items()
        if factor.bias is not None
    }
    for module, raw in weights.biases.items():
        difference = _tensor(raw).float() - base.bias(module).to(dtype).float()
        added[module] = difference + added[module] if module in added else difference
    return {bias_of(module): Difference(bias) for module, bias in added.items()}


def _check_copy(module: str, copy: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """PEFT computes with the copy, we with the base's weight: in `dtype` they must be equal, or the copy be the weight
    rounded by no more than `dtype` rounds, as float16 rounds a bfloat16 weight's smallest numbers."""
    if torch.equal(copy.to(dtype), weight.to(dtype)):
        return
    if not torch.equal(copy, weight.to(copy.dtype)):
        raise AdapterError(
            f"the adapter holds another {module}.weight than this base model has; list {module} in modules_to_save if "
            "it was trained, else save with save_embedding_layers=False"
        )
    lost, weight = (weight.float() - copy.float()).norm(dim=1), weight.float()
    if not bool((lost <= torch.finfo(dtype).eps * weight.norm(dim=1)).all()):
        raise AdapterError(
            f"the adapter holds the base's {module}.weight rounded to {str(copy.dtype).removeprefix('torch.')}, with "
            "which PEFT computes other results; save it with save_embedding_layers=False, or in the base's dtype"
        )


def _stretched(module: str, plain: LoraFactors, factor: Factor, base: Checkpoint) -> LoraFactors:
    """DoRA: g · (W + s·B·A) = W + s·(g·B)·A + (g − 1)·W, where g = m/‖W + s·B·A‖."""
    assert factor.magnitude is not None, "plain LoRA is not stretched"
    weight = base.matrix(module).to(plain.a.dtype)
    gain = _tensor(factor.magnitude).float() / row_norms(weight, plain)
    b = gain.unsqueeze(1) * plain.b.float()
    largest = max(float(gain.abs().max()), float(b.abs().max()) * max(1.0, abs(plain.scale)))  # NaN stays NaN
    if not largest * MAX_RECIPE_WEIGHT <= BFLOAT16_MAX:
        raise AdapterError(f"{module}: the magnitudes, over the norms of the weight's rows, overflow bfloat16")
    return LoraFactors(plain.a, b.to(plain.b.dtype), plain.scale, gain - 1)


def _moved(change: Change, device: torch.device) -> Change:
    if isinstance(change, Difference):
        return Difference(change.weight.to(device))
    stretch = None if change.stretch is None else change.stretch.to(device)
    return LoraFactors(change.a.to(device), change.b.to(device), change.scale, stretch)


def _kept(whole: RawTensor, dtype: torch.dtype) -> torch.dtype:
    """Norms' weights are computed with in float32."""
    return torch.float32 if len(whole.shape) == 1 else dtype


def _size(raw: RawTensor) -> int:
    return int(np.prod(raw.shape, dtype=np.int64))


def _tensor(raw: RawTensor) -> Tensor:
    """A copy of the mapped file's numbers."""
    tensor = torch.from_numpy(np.frombuffer(raw.data, _NUMPY_DTYPES[raw.dtype]).copy())
    if raw.dtype == "BF16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.reshape(raw.shape)
