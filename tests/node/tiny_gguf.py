"""A Llama of two layers in a GGUF file, as llama.cpp's converter would write it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS = 32, 64, 4, 2, 2
TOKENS = ["<end>", "<start>", *"abcdefgh", "ab", "é"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

Matrix = npt.NDArray[np.float32]


def shapes() -> dict[str, tuple[int, ...]]:
    kv = HIDDEN * KV_HEADS // HEADS
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (kv, HIDDEN),
        "attn_v": (kv, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    whole = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    return whole | {f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in layer.items()}


def write_tiny_gguf(path: Path, *, name: str = "tiny", template: str = TEMPLATE, architecture: str = "llama") -> Path:
    """Matrices in Q8_0, the rest in F32; the same numbers each time."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    for add in (writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)
    writer.add_bos_token_id(1)
    writer.add_chat_template(template)
    for tensor, shape in shapes().items():
        values: Matrix = generator.normal(size=shape).astype(np.float32)
        if len(shape) == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
