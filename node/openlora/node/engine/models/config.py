"""What a decoder looks like, read from `config.json` or from GGUF metadata; no torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openlora.node.adapters.modules import EmbeddingShape, LinearShape, ModuleShape, NormShape
from openlora.node.engine.gguf_file import GgufFile
from openlora.node.engine.models import gguf_config, hf_config
from openlora.node.engine.models.names import Names
from openlora.node.errors import ModelError

Activation = Literal["silu_mul", "gelu_tanh_mul", "gelu"]


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder with grouped-query attention and rotary positions; the fields say in what families differ."""

    family: str  # "llama", "mistral", …
    names: Names
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope_frequencies: tuple[float, ...]  # radians a position, one for each pair of a head; numbers of float32
    windows: tuple[int | None, ...]  # a layer each: how many positions a row sees, its own included; None: all
    max_positions: int
    tied_head: bool  # the embedding is the output head too
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    attention_scale: float  # of the products of queries and keys
    rope_scale: float = 1.0  # of the rotated queries and keys
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    activation: Activation = "silu_mul"  # the op between the MLP's projections
    layer_norms: bool = False  # with mean and bias, where others are RMS norms
    norm_offset: float = 0.0  # added to the norms' weights as they are stored
    embedding_scale: float = 1.0
    parallel: bool = False  # the MLP reads the layer's input, not what attention made of it

    @classmethod
    def from_path(cls, path: Path) -> "DecoderConfig":
        """Read a Hugging Face directory or a `.gguf` file. Raises ModelError, naming what is not supported."""
        if path.is_dir():
            return cls(**hf_config.read(path))
        if path.suffix == ".gguf" and path.is_file():
            return cls(**gguf_config.read(GgufFile(path)))
        raise ModelError(f"{path}: neither a model directory nor a .gguf file")

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} {getattr(self, name)} is not positive")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads")
        if self.head_size < 2 or self.head_size % 2 or len(self.rope_frequencies) != self.head_size // 2:
            raise ModelError(f"head size {self.head_size} does not fit {len(self.rope_frequencies)} rotary frequencies")
        if not self.norm_eps > 0:
            raise ModelError(f"the norms' epsilon {self.norm_eps} is not positive")
        if len(self.windows) != self.layers:
            raise ModelError(f"{self.layers} layers have {len(self.windows)} attention windows")
        for window in self.windows:
            if window is not None and window < 1:
                raise ModelError(f"a sliding window of {window} positions is not positive")
        for cap in (self.attention_soft_cap, self.logit_soft_cap):
            if cap is not None and not cap > 0:
                raise ModelError(f"a soft cap of {cap} is not positive")

    def layout(self) -> dict[str, LinearShape]:
        """Every linear layer, by its name as PEFT writes it less `base_model.model.`."""
        linears = self._layer_linears()
        shapes = {
            f"{self.names.layers}.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in linears.items()
        }
        return shapes | {self.names.head: LinearShape(self.vocab_size, self.hidden_size)}

    def modules(self) -> dict[str, ModuleShape]:
        """Every module that an adapter may change: the embedding, the linear layers, and norms without a bias."""
        tensors = self.tensors()
        norms = {
            name.removesuffix(".weight"): NormShape(*shape)
            for name, shape in tensors.items()
            if len(shape) == 1 and name.endswith(".weight") and f"{name.removesuffix('weight')}bias" not in tensors
        }
        embedding = {self.names.embedding: EmbeddingShape(self.hidden_size, self.vocab_size, self.tied_head)}
        return {**embedding, **self.layout(), **norms}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint, as Hugging Face names them."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.names.embedding}.weight": (self.vocab_size, self.hidden_size),
        }
        norms = {self.names.norm: self.hidden_size}
        linears = self._layer_linears()
        for prefix in (f"{self.names.layers}.{layer}" for layer in range(self.layers)):
            for name, size in self._layer_norms().items():
                norms[f"{prefix}.{name}"] = size
            for name, shape in linears.items():
                shapes[f"{prefix}.{name}.weight"] = shape.weight
                if shape.biased:
                    shapes[f"{prefix}.{name}.bias"] = (shape.out_features,)
        for name, size in norms.items():
            shapes[f"{name}.weight"] = (size,)
            if self.layer_norms:
                shapes[f"{name}.bias"] = (size,)
        if not self.tied_head:
            shapes[f"{self.names.head}.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_linears(self) -> Mapping[str, LinearShape]:
        hidden, inner, names = self.hidden_size, self.intermediate_size, self.names
        q_size, kv_size = self.heads * self.head_size, self.kv_heads * self.head_size
        qkv_sizes = (q_size + 2 * kv_size,) if names.fused_qkv else (q_size, kv_size, kv_size)
        return {
            **{name: LinearShape(n, hidden, self.qkv_bias) for name, n in zip(names.qkv, qkv_sizes, strict=True)},
            names.o: LinearShape(hidden, q_size, self.o_bias),
            **{name: LinearShape(inner, hidden, self.mlp_bias) for name in names.up},
            names.down: LinearShape(hidden, inner, self.mlp_bias),
        }

    def _layer_norms(self) -> Mapping[str, int]:
        """A layer's norms, and how many numbers each normalises."""
        names = self.names
        sizes = {
            names.attention_norm: self.hidden_size,
            names.post_attention_norm: self.hidden_size,
            names.mlp_norm: self.hidden_size,
            names.post_mlp_norm: self.hidden_size,
            names.q_norm: self.head_size,
            names.k_norm: self.head_size,
        }
        return {name: size for name, size in sizes.items() if name is not None}
