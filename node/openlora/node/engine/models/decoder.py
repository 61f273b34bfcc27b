"""The decoder of DecoderConfig, written in the ops of `openlora.kernels`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.kernels.types import Weight
from openlora.node.adapters.modules import bias_of
from openlora.node.engine.models.batch import Batch, KvCache, LoraBatch
from openlora.node.engine.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Projection:
    """One or several linear layers of one input, their weights stacked; `parts` names each and its output columns."""

    weight: Weight
    bias: Tensor | None
    parts: tuple[tuple[str, slice], ...]


@dataclass(frozen=True, slots=True)
class Norm:
    module: str
    weight: Tensor  # float32
    bias: Tensor | None  # of a layer norm; None: an RMS norm


@dataclass(frozen=True, slots=True)
class Layer:
    """Norms that are None do nothing."""

    attention_norm: Norm
    qkv: Projection
    q_norm: Norm | None
    k_norm: Norm | None
    o: Projection
    post_attention_norm: Norm | None
    mlp_norm: Norm
    gate_up: Projection  # or the latter alone
    down: Projection
    post_mlp_norm: Norm | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Tensor  # [vocabulary, hidden]
    layers: tuple[Layer, ...]
    norm: Norm
    head: Projection  # the embedding's own memory where the head is tied
    form: str = "full"  # what the matrices were rounded to at loading: "full" (not at all), "int8" or "int4"


def with_projections(weights: DecoderWeights, change: Callable[[Projection], Projection]) -> DecoderWeights:
    """The weights with another form of each matrix."""

    def layer(one: Layer) -> Layer:
        return replace(one, qkv=change(one.qkv), o=change(one.o), gate_up=change(one.gate_up), down=change(one.down))

    return replace(weights, layers=tuple(map(layer, weights.layers)), head=change(weights.head))


class Decoder:
    """x ← x + attention(norm(x)); x ← x + mlp(norm(x)) in every layer; logits = head(norm(x)).

    A parallel decoder's MLP reads what its attention reads; what is added to x may be normed once more.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, ops: Ops) -> None:
        self.config = config
        self.dtype = weights.embedding.dtype
        self.form = weights.form
        self.device = weights.embedding.device
        self._weights = weights
        self._ops = ops
        activations = {"silu_mul": ops.silu_mul, "gelu_tanh_mul": ops.gelu_tanh_mul, "gelu": ops.gelu}
        self._activate = activations[config.activation]
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=self.dtype))
        self._rope_table = rope_table(config).to(self.device)

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Write the batch's keys and values to the cache; return the logits [N, vocabulary] float32 of output_rows."""
        x = self._embed(batch)
        for number, layer in enumerate(self._weights.layers):
            attended = self._attention(number, self._norm(x, layer.attention_norm, batch.lora), batch, cache)
            after = x + self._norm(attended, layer.post_attention_norm, batch.lora)
            read = x if self.config.parallel else after
            made = self._mlp(layer, self._norm(read, layer.mlp_norm, batch.lora), batch)
            x = after + self._norm(made, layer.post_mlp_norm, batch.lora)
        hidden = self._norm(x.index_select(0, batch.output_rows), self._weights.norm, batch.output_lora)
        logits = self._project(self._weights.head, hidden, batch.output_lora, torch.float32)
        cap = self.config.logit_soft_cap
        return logits if cap is None else self._ops.soft_cap(logits, cap)

    def _embed(self, batch: Batch) -> Tensor:
        x, lora = F.embedding(batch.tokens, self._weights.embedding), batch.lora
        if lora is not None and (table := lora.tables.get(self.config.names.embedding)) is not None:
            self._ops.lora_embedding_(x, batch.tokens, lora.plan, table)
        return x if self._embedding_scale == 1.0 else x * self._embedding_scale

    def _attention(self, number: int, x: Tensor, batch: Batch, cache: KvCache) -> Tensor:
        config, layer, lora = self.config, self._weights.layers[number], batch.lora
        keys, values, attention = cache.keys[number], cache.values[number], batch.attention[config.windows[number]]
        qkv = self._project(layer.qkv, x, lora).view(len(x), -1, config.head_size)
        q, k, v = self._split(qkv)
        q, k = self._norm(q, layer.q_norm, lora), self._norm(k, layer.k_norm, lora)
        self._ops.rope_(q, k, batch.positions, self._rope_table)
        self._ops.kv_append_(k, v, keys, values, batch.slots)
        scale, cap = config.attention_scale, config.attention_soft_cap
        o = self._ops.paged_attention(q, keys, values, attention, scale, cap)
        return self._project(layer.o, o.flatten(1), lora)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of [T, H + 2K, D]; a fused projection has each group's heads together."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        if self.config.names.fused_qkv:
            groups = qkv.view(len(qkv), kv_heads, -1, self.config.head_size)
            q, k, v = groups.split_with_sizes([heads // kv_heads, 1, 1], dim=2)
            return q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
        q, k, v = qkv.split_with_sizes([heads, kv_heads, kv_heads], dim=1)
        return q, k, v

    def _mlp(self, layer: Layer, x: Tensor, batch: Batch) -> Tensor:
        inner = self._activate(self._project(layer.gate_up, x, batch.lora))
        return self._project(layer.down, inner, batch.lora)

    def _norm(self, x: Tensor, norm: Norm | None, lora: LoraBatch | None) -> Tensor:
        """The norm, or nothing where there is none; each row under the weight that its adapters make of it."""
        if norm is None:
            return x
        if norm.bias is not None:
            return self._ops.layer_norm(x, norm.weight, norm.bias, self.config.norm_eps)
        weight = norm.weight
        if lora is not None and (table := lora.tables.get(norm.module)) is not None:
            weight = weight.repeat(len(x), 1)
            self._ops.lora_vector_(weight, lora.plan, table)
            weight = weight if x.ndim == 2 else weight.unsqueeze(1)  # all heads of a row have the same
        return self._ops.rms_norm(x, weight, self.config.norm_eps)

    def _project(
        self, layer: Projection, x: Tensor, lora: LoraBatch | None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """The linear layers, and on top of each what the rows' adapters add to it."""
        y = self._ops.linear(x, layer.weight, layer.bias, out_dtype)
        if lora is not None:
            for module, columns in layer.parts:
                if (table := lora.tables.get(module)) is not None:
                    bias = None if layer.bias is None else layer.bias[columns]
                    self._ops.lora_(y[:, columns], x, lora.plan, table, bias)
                if (table := lora.tables.get(bias_of(module))) is not None:
                    self._ops.lora_vector_(y[:, columns], lora.plan, table)
        return y


def rope_table(config: DecoderConfig) -> Tensor:
    """[positions, head size] float32: the cosines, then the sines, of position · frequency in float32."""
    positions = torch.arange(config.max_positions, dtype=torch.float32)
    angles = torch.outer(positions, torch.tensor(config.rope_frequencies, dtype=torch.float32))
    return torch.cat((angles.cos(), angles.sin()), dim=1) * config.rope_scale
