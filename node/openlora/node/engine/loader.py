"""A base model's weights, made of its checkpoint's tensors, as the decoder wants them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openlora.kernels.quantised import dequantise, quantise_int4, quantise_int8, stack, to_device
from openlora.kernels.types import CodedWeight, Int8Weight, Weight
from openlora.node.engine.checkpoint import TensorSource, open_source
from openlora.node.engine.gguf_file import ROPE_FACTORS
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import DecoderWeights, Layer, Norm, Projection
from openlora.node.errors import ModelError

_HARMLESS = re.compile(r".*rotary_emb\.inv_freq|" + re.escape(ROPE_FACTORS))
FORMS = ("auto", "full", "int8", "int4")
CPU = torch.device("cpu")


def load_weights(
    path: Path, config: DecoderConfig, dtype: str, form: str = "auto", device: torch.device = CPU
) -> DecoderWeights:
    """As build_weights, from the checkpoint at `path`."""
    return build_weights(open_model(path, config), config, dtype, form, device)


def open_model(path: Path, config: DecoderConfig) -> TensorSource:
    """Raises ModelError if a tensor is missing, misshapen or not the model's."""
    source = open_source(path, config)
    _check_tensors(source, config)
    return source


def build_weights(
    source: TensorSource, config: DecoderConfig, dtype: str, form: str, device: torch.device
) -> DecoderWeights:
    """Read the source, which has exactly the model's tensors, into the device's memory; dtype is "bfloat16" or
    "float32".

    `form` is what the matrices are kept in: "full", all in the dtype; "int8" or "int4", rounded by the rules of
    openlora.kernels.quantised, except that "int4" leaves alone what has 4 bits already, and gives the head 8; "auto",
    "full" but for the matrices whose checkpoint keeps 4 to 8 bits: in bfloat16 those stay as they are, which changes no
    result.

    Raises ModelError if a tensor is of a kind that is not served.
    """
    if form not in FORMS:
        raise ModelError(f"weights {form!r} are not served; {', '.join(map(repr, FORMS))} are")
    if dtype not in ("bfloat16", "float32"):
        raise ModelError(f"dtype {dtype!r} is not served; 'auto', 'bfloat16' and 'float32' are")
    if form == "auto" and dtype == "float32":
        form = "full"
    return _Builder(source, config, torch.bfloat16 if dtype == "bfloat16" else torch.float32, form, device).weights()


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
