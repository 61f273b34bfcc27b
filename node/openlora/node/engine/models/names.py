"""What checkpoints call a decoder's modules, and PEFT with them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Names:
    """The modules' names, a layer's own relative to it. None: the decoder has no such module."""

    embedding: str
    layers: str  # layer 3 is called `layers`.3
    attention_norm: str
    qkv: tuple[str, ...]  # queries, keys and values; or one of all three, head group by head group
    q_norm: str | None  # of each head's query, before it is rotated
    k_norm: str | None
    o: str
    post_attention_norm: str | None  # of what attention adds
    mlp_norm: str  # may be the attention's own
    up: tuple[str, ...]  # gate and up projection; or the latter alone
    down: str
    post_mlp_norm: str | None  # of what the MLP adds
    norm: str
    head: str = "lm_head"

    @property
    def fused_qkv(self) -> bool:
        return len(self.qkv) == 1


LLAMA = Names(
    embedding="model.embed_tokens",
    layers="model.layers",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    q_norm=None,
    k_norm=None,
    o="self_attn.o_proj",
    post_attention_norm=None,
    mlp_norm="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    post_mlp_norm=None,
    norm="model.norm",
)
QWEN3 = replace(LLAMA, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
GEMMA2 = replace(
    LLAMA,
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)
FALCON = Names(
    embedding="transformer.word_embeddings",
    layers="transformer.h",
    attention_norm="input_layernorm",
    qkv=("self_attention.query_key_value",),
    q_norm=None,
    k_norm=None,
    o="self_attention.dense",
    post_attention_norm=None,
    mlp_norm="input_layernorm",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    post_mlp_norm=None,
    norm="transformer.ln_f",
)
