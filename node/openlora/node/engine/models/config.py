"""What a decoder looks like, read from `config.json` or from GGUF metadata; no torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openlora.node.adapters.format import LinearShape
from openlora.node.engine.gguf_file import GgufFile
from openlora.node.engine.models import gguf_config, hf_config
from openlora.node.errors import ModelError


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A Llama-style decoder: RMS norms before grouped-query attention with rotary positions and before a SiLU-gated
    MLP. Qwen2 differs by its attention bias alone."""

    family: str  # "llama", "qwen2"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rms_norm_eps: float
    rope_frequencies: tuple[float, ...]  # radians a position, one for each pair of a head
    max_positions: int
    tied_head: bool  # the embedding is the output head too
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]

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
        if not self.rms_norm_eps > 0:
            raise ModelError(f"rms_norm_eps {self.rms_norm_eps} is not positive")

    def layout(self) -> dict[str, LinearShape]:
        """Every linear layer that an adapter may change, by its name as PEFT writes it less `base_model.model.`."""
        shapes = {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in self._layer_layout().items()
        }
        return shapes | {"lm_head": LinearShape(self.vocab_size, self.hidden_size)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint, as Hugging Face names them."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (self.hidden_size,),
        }
        for layer in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{norm}.weight"] = (self.hidden_size,)
        for module, shape in self.layout().items():
            if module == "lm_head" and self.tied_head:
                continue
            shapes[f"{module}.weight"] = (shape.out_features, shape.in_features)
            if self._has_bias(module):
                shapes[f"{module}.bias"] = (shape.out_features,)
        return shapes

    def _layer_layout(self) -> Mapping[str, LinearShape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": LinearShape(q_size, hidden),
            "self_attn.k_proj": LinearShape(kv_size, hidden),
            "self_attn.v_proj": LinearShape(kv_size, hidden),
            "self_attn.o_proj": LinearShape(hidden, q_size),
            "mlp.gate_proj": LinearShape(inner, hidden),
            "mlp.up_proj": LinearShape(inner, hidden),
            "mlp.down_proj": LinearShape(hidden, inner),
        }

    def _has_bias(self, module: str) -> bool:
        match module.rpartition(".")[2]:
            case "q_proj" | "k_proj" | "v_proj":
                return self.qkv_bias
            case "o_proj":
                return self.o_bias
            case "gate_proj" | "up_proj" | "down_proj":
                return self.mlp_bias
        return False
