"""An adapter directory in PEFT's LoRA format, checked against one base model and read without torch or peft.

Two files: `adapter_config.json` and `adapter_model.safetensors`; no other is opened. What `read_adapter` returns is
safe to compute with: complete, of exact shapes, without NaN or Inf before or after the cast to bfloat16 and the scaling
of B.
"""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeGuard

from openlora.node.adapters.bits import equal, largest_magnitude
from openlora.node.adapters.config import CONFIG_FILE, MAX_CONFIG_BYTES, AdapterConfig, parse_config
from openlora.node.adapters.folder import WEIGHTS_FILE, contents, require_both
from openlora.node.adapters.meaning import saved_modules, targeted_modules, tied_ends, trained_tokens
from openlora.node.adapters.modules import HEAD, EmbeddingShape, Layout, LinearShape, ModuleShape
from openlora.node.adapters.safetensors import MAX_HEADER_BYTES, RawTensor, parse_tensors
from openlora.node.errors import AdapterError
from openlora.node.malformed import quote

MAX_RECIPE_WEIGHT: Final = 10.0  # a recipe scales an adapter by at most this
BFLOAT16_MAX: Final = 3.3895313892515355e38
_KEY_PREFIX: Final = "base_model.model."
_PAIR: Final = ("lora_A.weight", "lora_B.weight")
_EMBEDDING_PAIR: Final = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE: Final = "lora_magnitude_vector"
_BIAS: Final = "lora_B.bias"
_IN_A_MODEL: Final = {  # what PEFT takes as well: the names that a model gives to its adapter "default"
    ".lora_A.default.weight": ".lora_A.weight",
    ".lora_B.default.weight": ".lora_B.weight",
    ".lora_B.default.bias": ".lora_B.bias",
    ".lora_embedding_A.default": ".lora_embedding_A",
    ".lora_embedding_B.default": ".lora_embedding_B",
    ".lora_magnitude_vector.default.weight": ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight": ".lora_magnitude_vector",
    ".modules_to_save.weight": ".weight",
    ".modules_to_save.bias": ".bias",
}
_UNUSED: Final = (  # by any answer: the base's, where a saved layer brings its own; what VeLoRA and MonteCLoRA kept
    ".original_module.bias",
    ".lora_velora_embed",
    ".lora_monteclora_sampler.expert_weights",
    ".lora_monteclora_sampler.expert_weights_prior",
    ".lora_monteclora_sampler.gaussian_var_prior",
    ".lora_monteclora_sampler.std_prior",
)
_TRAINED_TOKENS: Final = "token_adapter.trainable_tokens_delta"  # whole rows, whatever its name says


@dataclass(frozen=True, slots=True)
class Factor:
    """One layer's low-rank term: scale · B·A with A [rank, in_features] and B [out_features, rank].

    With a magnitude m [out_features] (DoRA, Liu et al., 2024) the layer's weight W becomes m/‖W + scale·B·A‖ · (W +
    scale·B·A), the norm taken over each output's inputs. With a bias [out_features] the layer's own grows by scale ·
    bias.
    """

    a: RawTensor
    b: RawTensor
    scale: float
    magnitude: RawTensor | None = None
    bias: RawTensor | None = None

    @property
    def tensors(self) -> tuple[RawTensor, ...]:
        return tuple(one for one in (self.a, self.b, self.magnitude, self.bias) if one is not None)


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Whole rows of the embedding or of the output head, or of both where they are tied: row i, of the base's hidden
    size, stands in the place of that of tokens[i]."""

    tokens: tuple[int, ...]  # each once, below vocab_size
    rows: RawTensor  # [tokens, hidden size]
    modules: tuple[str, ...]
    vocab_size: int


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """A whole adapter. `rank` is the largest of its layers', `nbytes` the size of what it changes, as stored."""

    rank: int
    nbytes: int
    factors: Mapping[str, Factor]
    replaced: Mapping[str, RawTensor] = field(default_factory=dict)  # modules_to_save: whole weights
    biases: Mapping[str, RawTensor] = field(default_factory=dict)  # that stand in the place of the base's
    trained: tuple[TrainedTokens, ...] = ()  # trainable_token_indices
    copies: Mapping[str, RawTensor] = field(default_factory=dict)  # what PEFT stores of the base, to be equal to it

    def digest(self) -> bytes:
        """Equal for equal effects alone: of every module's name, scale, and tensors as they are stored."""
        digest = blake2b(digest_size=32)
        for module, factor in sorted(self.factors.items()):
            title = f"{module} {factor.scale.hex()}"
            _update(digest, title if factor.bias is None else f"{title} biased", factor.tensors)
        for module, weight in sorted(self.replaced.items()):
            _update(digest, f"{module} =", [weight])
        for module, bias in sorted(self.biases.items()):
            _update(digest, f"{module}.bias =", [bias])
        for trained in self.trained:
            _update(digest, f"{trained.modules} {trained.tokens} =", [trained.rows])
        return digest.digest()


def _update(digest: "blake2b", title: str, tensors: Iterable[RawTensor]) -> None:
    digest.update(f"{title} {[(raw.dtype, *raw.shape) for raw in tensors]}\n".encode())
    for raw in tensors:
        digest.update(raw.data)


def read_adapter(directory: Path, layout: Layout) -> AdapterWeights:
    """Read and check the adapter in `directory` for a base model with the modules of `layout`.

    The tensors are views of the memory-mapped file, which must not be written to while they live.
    Raises AdapterError with one sentence that names the file, key or tensor.
    """
    require_both(directory)
    config = parse_config(bytes(contents(directory / CONFIG_FILE, MAX_CONFIG_BYTES)))
    saved = saved_modules(config, layout)
    targeted = targeted_modules(config, layout, saved)
    numbers = _most_numbers(config, layout, targeted, saved)
    weights = contents(directory / WEIGHTS_FILE, 8 + MAX_HEADER_BYTES + 4 * numbers)
    tensors = _as_saved(parse_tensors(weights, WEIGHTS_FILE))
    if config.by_tensors:
        targeted = {module: shape for module, shape in targeted.items() if _has_factors(module, tensors)}
    factors = {module: _factor(module, shape, config, tensors) for module, shape in targeted.items()}
    replaced = {module: _whole(module, "weight", shape, tensors) for module, shape in saved.items()}
    biases = _biases(layout, targeted, saved, tensors)
    trained = _trained(config, layout, {*targeted, *saved}, tensors)
    if config.ties_ends:
        _require_equal_ends(layout, factors, replaced)
    bases = {
        **dict.fromkeys(targeted, "base_layer"),
        **dict.fromkeys(saved, "original_module"),
        **{module: "token_adapter.base_layer" for one in trained for module in one.modules},
    }
    copies = _copies(layout, bases, tensors)
    if tensors:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(next(iter(tensors)))} {_what_it_lacks(config, tensors)}")
    if not factors:
        raise AdapterError(f"{WEIGHTS_FILE}: holds no A and B of a layer that may be targeted")
    rows = [one.rows for one in trained]
    low_rank = [raw for factor in factors.values() for raw in factor.tensors]
    changes = [*low_rank, *replaced.values(), *biases.values(), *rows]
    return AdapterWeights(
        rank=max(one.shape[0] for one in [*rows, *(factor.a for factor in factors.values())]),
        nbytes=sum(len(raw.data) for raw in changes),
        factors=factors,
        replaced=replaced,
        biases=biases,
        trained=trained,
        copies=copies,
    )


def _most_numbers(config: AdapterConfig, layout: Layout, targeted: Layout, saved: Layout) -> int:
    """What the weights can hold: A, B, their biases and magnitudes, and as much that only training used; the base's
    biases; rows of tokens and whole weights, each under two names; copies of the embedding and the head."""
    vectors = config.dora + config.biased + 1
    low_rank = sum((2 * config.rank_of(module) + vectors) * sum(shape.weight) for module, shape in targeted.items())
    biases = sum(shape.out_features for shape in layout.values() if _is_biased(shape))
    hidden_size = max((shape.out_features for shape in layout.values() if isinstance(shape, EmbeddingShape)), default=0)
    rows = hidden_size * sum(map(len, config.trained_tokens.values()))
    whole = sum(math.prod(shape.weight) for shape in saved.values())
    copies = sum(math.prod(shape.weight) for module, shape in layout.items() if _is_end(module, shape))
    return low_rank + biases + 2 * (rows + whole) + copies


def _what_it_lacks(config: AdapterConfig, tensors: Mapping[str, RawTensor]) -> str:
    """What is wrong with the first of the tensors that nothing asked for."""
    if next(iter(tensors)).endswith(".bias"):
        return "is no bias of a linear layer that has one, and no other is served: leave it untrained"
    meant = "this base model that may be targeted" if config.by_tensors else "target_modules"
    return f"belongs to no layer of {meant}, and is no weight of modules_to_save"


def _as_saved(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """By the names that PEFT gives them in a file."""
    if not any(name.startswith(_KEY_PREFIX) for name in tensors):
        raise AdapterError(
            f"{WEIGHTS_FILE}: no tensor's name begins with {_KEY_PREFIX!r}, as in what PEFT saves; PEFT too would "
            "apply nothing of it"
        )
    found: dict[str, RawTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_UNUSED):
            continue
        ending = next((ending for ending in _IN_A_MODEL if name.endswith(ending)), "")
        saved = name.removesuffix(ending) + _IN_A_MODEL.get(ending, "")
        if not equal(found.setdefault(saved, tensor), tensor):  # save_embedding_layers=True writes some twice
            raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(saved)} is there twice, with other numbers")
    return found


def _has_factors(module: str, tensors: Mapping[str, RawTensor]) -> bool:
    """Any of them: a part alone is refused later."""
    return any(f"{_KEY_PREFIX}{module}.{part}" in tensors for part in (*_PAIR, *_EMBEDDING_PAIR, _MAGNITUDE))


def _factor(
    module: str, shape: LinearShape | EmbeddingShape, config: AdapterConfig, tensors: dict[str, RawTensor]
) -> Factor:
    """The module's pair and magnitude, taken out of `tensors`."""
    rank, scale = config.rank_of(module), config.scale_of(module)
    growth = max(1.0, abs(scale) * MAX_RECIPE_WEIGHT)
    if growth > BFLOAT16_MAX:  # would be Inf, and Inf · 0 is NaN
        raise AdapterError(f"{CONFIG_FILE}: the scale {scale:g} of {module} overflows bfloat16")
    a, b = _EMBEDDING_PAIR if isinstance(shape, EmbeddingShape) else _PAIR
    magnitude = bias = None
    if config.dora:
        magnitude = _take(tensors, f"{module}.{_MAGNITUDE}", (shape.out_features,), MAX_RECIPE_WEIGHT)
    if config.biased:
        if isinstance(shape, EmbeddingShape):
            raise AdapterError(f"{CONFIG_FILE}: lora_bias is for linear layers, and {module} is an embedding")
        bias = _take(tensors, f"{module}.{_BIAS}", (shape.out_features,), growth)
    return Factor(
        a=_take(tensors, f"{module}.{a}", (rank, shape.in_features), 1.0),
        b=_take(tensors, f"{module}.{b}", (shape.out_features, rank), growth),
        scale=scale,
        magnitude=magnitude,
        bias=bias,
    )


def _require_equal_ends(layout: Layout, factors: Mapping[str, Factor], replaced: Mapping[str, RawTensor]) -> None:
    """With ensure_weight_tying PEFT stores one change of tied weights twice, and loads it into one place."""
    if not (ends := tied_ends(layout)):
        return
    embedding, head = ends
    apart = False
    if embedding in replaced and head in replaced:
        apart = not equal(replaced[embedding], replaced[head])
    if embedding in factors and head in factors:
        one, other = factors[embedding], factors[head]
        apart = not (equal(one.a, other.b, transposed=True) and equal(one.b, other.a, transposed=True))
    if apart:
        raise AdapterError(f"{WEIGHTS_FILE}: ensure_weight_tying is set, but {embedding} and {head} are changed apart")


def _trained(
    config: AdapterConfig, layout: Layout, otherwise: Container[str], tensors: dict[str, RawTensor]
) -> tuple[TrainedTokens, ...]:
    """The rows of the trained tokens, taken out of `tensors`."""
    made = []
    for modules, tokens in trained_tokens(config, layout, otherwise).items():
        vocab_size, hidden_size = layout[modules[0]].weight
        rows = _take(tensors, f"{modules[0]}.{_TRAINED_TOKENS}", (len(tokens), hidden_size), MAX_RECIPE_WEIGHT)
        for tied in modules[1:]:  # save_embedding_layers=True writes the same rows there
            if not equal(tensors.pop(f"{_KEY_PREFIX}{tied}.{_TRAINED_TOKENS}", rows), rows):
                raise AdapterError(
                    f"{WEIGHTS_FILE}: the trained tokens of {modules[0]} and {tied}, which are one weight, differ"
                )
        made.append(TrainedTokens(tokens, rows, modules, vocab_size))
    return tuple(made)


def _whole(module: str, part: str, shape: ModuleShape, tensors: dict[str, RawTensor]) -> RawTensor:
    hint = "; for new tokens, save the base model that has them, and use that" if _is_end(module, shape) else ""
    return _take(tensors, f"{module}.{part}", shape.weight, MAX_RECIPE_WEIGHT, hint)


def _biases(layout: Layout, targeted: Layout, saved: Layout, tensors: dict[str, RawTensor]) -> dict[str, RawTensor]:
    """What stands in the place of the base's biases: of layers that it replaces, and of any where bias is "all" or
    "lora_only"."""
    biases = {}
    for module, shape in layout.items():
        name = f"{module}.base_layer.bias" if module in targeted else f"{module}.bias"
        if _is_biased(shape) and (module in saved or _KEY_PREFIX + name in tensors):
            biases[module] = _take(tensors, name, (shape.out_features,), MAX_RECIPE_WEIGHT)
    return biases


def _is_biased(shape: ModuleShape) -> TypeGuard[LinearShape]:
    return isinstance(shape, LinearShape) and shape.biased


def _copies(layout: Layout, bases: Mapping[str, str], tensors: dict[str, RawTensor]) -> dict[str, RawTensor]:
    """PEFT's save_embedding_layers: the base's embedding and head, without being asked where either is targeted.
    `bases`: what a changed module calls the one that it stands for."""
    copies = {}
    for module, shape in layout.items():
        part = f"{bases[module]}.weight" if module in bases else "weight"
        if _is_end(module, shape) and f"{_KEY_PREFIX}{module}.{part}" in tensors:
            copies[module] = _whole(module, part, shape, tensors)
    return copies


def _is_end(module: str, shape: ModuleShape) -> bool:
    return module == HEAD or isinstance(shape, EmbeddingShape)


def _take(tensors: dict[str, RawTensor], name: str, shape: tuple[int, ...], growth: float, hint: str = "") -> RawTensor:
    """A tensor of exactly this shape, without NaN or Inf as stored and in bfloat16 once multiplied by `growth`. `hint`:
    what to do about another shape."""
    name = _KEY_PREFIX + name
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} is missing")
    if tensor.shape != shape:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} has shape {tensor.shape}, not {shape}{hint}")
    largest = largest_magnitude(tensor)
    if not math.isfinite(largest):
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} holds NaN or Inf")
    if largest * growth > BFLOAT16_MAX:
        raise AdapterError(f"{WEIGHTS_FILE}: tensor {quote(name)} overflows bfloat16 once cast and scaled")
    return tensor
