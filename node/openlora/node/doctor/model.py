"""The base model on this machine: whether it can be served, how much memory it takes, and which one it is."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openlora.node.base_model import base_model_id
from openlora.node.config import NodeConfig
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ModelError

KEY_AND_VALUE: Final = 2
CACHE_BYTES: Final = 2  # of one number
SHARE_KEPT: Final = {"int8": 0.55, "int4": 0.35}  # of bfloat16 weights, scales included


@dataclass(frozen=True, slots=True)
class ModelFacts:
    path: Path
    exists: bool
    has_tokenizer: bool = False
    refusal: str = ""  # the loader's own sentence
    needed_bytes: int = 0  # of weights and cache, about; 0 when unknown
    base_id: bytes | None = None  # None where there was no time to read it all


class _OutOfTime(Exception):
    pass


def look_at_model(config: NodeConfig, deadline_s: float, known_id: bytes | None = None) -> ModelFacts:
    """Blocks until `deadline_s` (monotonic seconds) at most; `known_id`: what a running agent serves."""
    path = config.model.path
    if not path.exists():
        return ModelFacts(path, exists=False)
    has_tokenizer = path.is_file() or (path / "tokenizer.json").is_file()
    try:
        decoder = DecoderConfig.from_path(path)
        base_id = known_id or (_identity(path, deadline_s) if has_tokenizer else None)
    except ModelError as error:
        return ModelFacts(path, exists=True, has_tokenizer=has_tokenizer, refusal=str(error))
    cache = config.engine.kv_tokens * decoder.layers * decoder.kv_heads * decoder.head_size
    weights = int(_stored_bytes(path) * SHARE_KEPT.get(config.model.weights, 1.0))
    needed = weights + KEY_AND_VALUE * CACHE_BYTES * cache
    return ModelFacts(path, True, has_tokenizer, needed_bytes=needed, base_id=base_id)


def _identity(path: Path, deadline_s: float) -> bytes | None:
    def check_time(_done: int, _total: int) -> None:
        if time.monotonic() > deadline_s:
            raise _OutOfTime

    try:
        return base_model_id(path, check_time)
    except _OutOfTime:
        return None


def _stored_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def check_model(model: ModelFacts) -> Iterator[Finding]:
    if not model.exists:
        yield critical(
            Code.MODEL_MISSING,
            f"there is no base model at {model.path}",
            "fetch it with `openlora model pull`, or correct model.path",
        )
        return
    if not model.has_tokenizer:
        yield critical(
            Code.TOKENIZER_MISSING,
            f"{model.path} has no tokenizer.json",
            "fetch the model again, with its tokenizer",
        )
    if model.refusal:
        yield critical(Code.MODEL_UNREADABLE, model.refusal, "fetch the model again, or serve a supported one")


def check_identity(model: ModelFacts, registered: bool | None) -> Iterator[Finding]:
    """`registered`: whether the chain knows the model; None where it could not be asked."""
    if registered is False and model.base_id is not None:
        yield critical(
            Code.MODEL_UNKNOWN,
            f"nobody registered the base model 0x{model.base_id.hex()} in this market: no job's recipe names it",
            "serve a model that is registered (`openlora adapter list` names those with adapters)",
        )
    if model.base_id is None and model.has_tokenizer and not model.refusal:
        yield warning(
            Code.NOT_CHECKED,
            "the base model is too large to be identified in time",
            "compare `openlora model verify` with the id that jobs name",
        )
