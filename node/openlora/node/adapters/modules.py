"""The modules of a base model that an adapter may change, by kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HEAD: Final = "lm_head"  # the output head's name; where it is tied to the embedding, factors change either alone


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer y = W·x, W of shape [out_features, in_features]; `biased`: plus a bias [out_features]."""

    out_features: int
    in_features: int
    biased: bool = False

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """An embedding y = W[token], W of shape [in_features, out_features]: a linear layer of one-hot vectors. `tied`: W
    is the output head's weight too."""

    out_features: int
    in_features: int
    tied: bool = False

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.in_features, self.out_features)


@dataclass(frozen=True, slots=True)
class NormShape:
    """A norm's weight, [features]."""

    features: int

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.features,)


ModuleShape = LinearShape | EmbeddingShape | NormShape
Layout = Mapping[str, ModuleShape]  # by the names that PEFT writes, less `base_model.model.`


def bias_of(module: str) -> str:
    """What the module's bias is called beside modules."""
    return f"{module}.bias"
