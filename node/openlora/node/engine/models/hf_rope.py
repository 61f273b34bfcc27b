"""`rope_parameters` (transformers 5) or `rope_scaling` (before): how positions rotate queries and keys."""

import math
from typing import Annotated, Any

import msgspec

from openlora.node.engine.models import rope
from openlora.node.engine.models.rope import Frequencies
from openlora.node.errors import ModelError

MAX_POSITIONS = 2**62  # many say more than anybody reaches
_THETA = 10_000.0
_Positive = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]  # beyond it, logarithms and quotients overflow
_Mscale = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
_Positions = Annotated[int, msgspec.Meta(ge=1, le=MAX_POSITIONS)]


class _Default(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    rope_type: str | None = None
    type: str | None = None  # rope_type's older name
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        return frequencies

    @property
    def scale(self) -> float:
        return 1.0


class _Dynamic(_Default):
    """Stretches what is longer than max_position_embeddings, which no request is."""

    factor: _Positive
    original_max_position_embeddings: _Positions | None = None


class _Linear(_Default):
    factor: _Positive

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        return rope.linear(frequencies, self.factor)


class _Llama3(_Default):
    factor: _Positive
    low_freq_factor: _Positive
    high_freq_factor: _Positive
    original_max_position_embeddings: _Positions

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        low, high = self.low_freq_factor, self.high_freq_factor
        if not high > low:
            raise ModelError(f"rope_type 'llama3': high_freq_factor {high} does not exceed low_freq_factor {low}")
        return rope.llama3(frequencies, self.factor, low, high, self.original_max_position_embeddings)


class _Yarn(_Default):
    factor: _Positive
    original_max_position_embeddings: _Positions
    attention_factor: _Positive | None = None
    mscale: _Mscale | None = None
    mscale_all_dim: _Mscale | None = None
    beta_fast: _Positive | None = None
    beta_slow: _Positive | None = None
    truncate: bool = True

    def scaled(self, frequencies: Frequencies, theta: float) -> Frequencies:
        head_size = 2 * len(frequencies)

        def pair(turns: float) -> float:
            """The one that turns so often in the original positions."""
            waves = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return head_size * math.log(waves) / (2 * math.log(theta))

        first, last = pair(self.beta_fast or 32.0), pair(self.beta_slow or 1.0)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_size - 1)
        return rope.yarn(frequencies, self.factor, first, last if last != first else last + 0.001)

    @property
    def scale(self) -> float:
        stretch = 0.1 * math.log(max(self.factor, 1.0))
        if self.attention_factor is None and self.mscale and self.mscale_all_dim:  # as DeepSeek has them
            return (self.mscale * stretch + 1.0) / (self.mscale_all_dim * stretch + 1.0)
        return self.attention_factor or stretch + 1.0


_KINDS = {"default": _Default, "dynamic": _Dynamic, "linear": _Linear, "llama3": _Llama3, "yarn": _Yarn}


def rotation(
    parameters: dict[str, Any], head_size: int, positions: int, original_positions: int | None = None
) -> dict[str, Any]:
    """The rotary fields of DecoderConfig. `original_positions` is the config's own original_max_position_embeddings,
    which stands above that of the parameters; where neither is given all `positions` are. Raises ModelError."""
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind not in _KINDS:
        raise ModelError(f"rope_type {kind[:64]!r} is not served; {', '.join(map(repr, _KINDS))} are")
    if "original_max_position_embeddings" in _KINDS[kind].__struct_fields__:
        outside = {} if original_positions is None else {"original_max_position_embeddings": original_positions}
        parameters = {"original_max_position_embeddings": positions} | parameters | outside
    try:
        if kind == "yarn" and parameters.get("factor", 1.0) is None:
            original = msgspec.convert(parameters["original_max_position_embeddings"], _Positions)
            parameters = parameters | {"factor": positions / original}
        keys = msgspec.convert(parameters, _KINDS[kind])
    except msgspec.ValidationError as error:
        raise ModelError(f"rope_type {kind!r}: {error}") from error
    if keys.partial_rotary_factor not in (None, 1.0):
        raise ModelError(f"partial_rotary_factor {keys.partial_rotary_factor} is not served; 1.0 is")
    theta = keys.rope_theta or _THETA
    frequencies = keys.scaled(rope.plain(theta, head_size), theta)
    return {"rope_frequencies": tuple(map(float, frequencies)), "rope_scale": keys.scale}
