"""What every engine of a comparison loads: a model, LoRA adapters, and both again as GGUF files, bfloat16 everywhere.

A folder holds `model/` and `adapters/aNNNN/` as Hugging Face and PEFT write them, `gguf/model.gguf` and
`gguf/aNNNN.gguf`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import torch
from bench.throughput import RANKS, write_adapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openlora.node.engine.models.config import DecoderConfig

ADAPTERS = 32
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 2_048,
    "intermediate_size": 8_192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def smollm2(out: Path, model: Path) -> None:
    """SmolLM2-135M at `model`, with adapters of ranks 8, 16, 16 and 32 in turn. What is in `out` already stays."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").exists():
        (out / "model").symlink_to(model.resolve())
    _add_the_rest(out, RANKS)


def llama_1b(out: Path) -> None:
    """Random weights in Llama-3.2-1B's shape, with adapters of rank 16. What is in `out` already stays."""
    if not (out / "model/model.safetensors").exists():
        (out / "model").mkdir(parents=True, exist_ok=True)
        (out / "model/config.json").write_text(json.dumps(LLAMA_1B))
        generator = torch.Generator().manual_seed(0)
        shapes = DecoderConfig.from_path(out / "model").tensors()
        tensors = {name: _draw(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, out / "model/model.safetensors", metadata={"format": "pt"})
    _add_the_rest(out, (16,))


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms are one, and matrices from N(0, 1/in), so that activations stay of order one."""
    drawn = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    return drawn.bfloat16()


def _add_the_rest(out: Path, ranks: Sequence[int]) -> None:
    config = DecoderConfig.from_path(out / "model")
    for folder in ("gguf", "adapters"):
        (out / folder).mkdir(exist_ok=True)
    if not (out / "gguf/model.gguf").exists():
        write_gguf_model(out / "gguf/model.gguf", out / "model/model.safetensors", config)
    for number in range(ADAPTERS):
        adapter, converted = out / f"adapters/a{number:04d}", out / f"gguf/a{number:04d}.gguf"
        if not adapter.exists():
            write_adapter(out / "adapters", out / "model", number, ranks)
        if not converted.exists():
            _write_gguf_adapter(converted, adapter, config)


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf_model(path: Path, weights: Path, config: DecoderConfig) -> None:
    """Prompts and answers are token ids, so the vocabulary holds placeholders."""
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(round(config.rope_frequencies[1] ** (-config.head_size / 2)))
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    _finish(writer, path, _gguf_tensors(weights, config))


def _write_gguf_adapter(path: Path, adapter: Path, config: DecoderConfig) -> None:
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    alpha = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    writer.add_float32("adapter.lora.alpha", float(alpha))
    _finish(writer, path, _gguf_tensors(adapter / "adapter_model.safetensors", config))


def _gguf_tensors(path: Path, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors under GGUF's names. In q and k, whose rows rope pairs by halves, GGUF has each pair side by side."""
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 no mapping
            parts = key.removeprefix("base_model.model.").split(".")
            side = {"lora_A": ".lora_a", "lora_B": ".lora_b"}.get(parts[-2], "")
            module = parts[: -2 if side else -1]
            prefix = f"blk.{module[2]}." if module[1] == "layers" else ""
            name = GGUF_NAMES[".".join(module[3:] if prefix else module)]
            tensor = file.get_tensor(key)
            if name in ("attn_q", "attn_k") and side != ".lora_a":
                halves = tensor.view(-1, 2, config.head_size // 2, tensor.shape[-1])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
            yield f"{prefix}{name}.weight{side}", tensor


def _finish(writer: gguf.GGUFWriter, path: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """`path` comes to be whole or not at all."""
    for name, tensor in tensors:
        if tensor.dim() == 1:
            writer.add_tensor(name, tensor.float().numpy())
        else:
            raw = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    partial = path.with_suffix(".partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
