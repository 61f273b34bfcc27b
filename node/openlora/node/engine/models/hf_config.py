"""A Hugging Face model directory's `config.json`, as the fields of DecoderConfig."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from openlora.node.engine.models import hf_falcon, hf_gemma, hf_llama
from openlora.node.errors import ModelError
from openlora.node.malformed import quote

_MAX_BYTES = 1 << 20
_FAMILIES: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "llama": hf_llama.llama,
    "mistral": hf_llama.mistral,
    "ministral": hf_llama.mistral,  # what transformers takes a mistral with layer_types for
    "qwen2": hf_llama.qwen2,
    "qwen3": hf_llama.qwen3,
    "gemma": hf_gemma.gemma,
    "gemma2": hf_gemma.gemma2,
    "falcon": hf_falcon.falcon,
}


class _Family(msgspec.Struct):
    model_type: str
    auto_map: dict[str, Any] | None = None


class _EndTokens(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def read(directory: Path) -> dict[str, Any]:
    """The fields of DecoderConfig. Raises ModelError."""
    path = directory / "config.json"
    text = _contents(path)
    try:
        head = msgspec.json.decode(text, type=_Family)
        family = head.model_type
        if family not in _FAMILIES:
            raise ModelError(f"model_type {quote(family)} is not served; {', '.join(_FAMILIES)} are")
        if (
            head.auto_map is not None and family != "falcon"
        ):  # its published code is as old as it, and computes the same
            raise ModelError("auto_map asks to run the checkpoint's own code, which is never done")
        fields = _FAMILIES[family](text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: {error}") from error
    ends = tuple(token_id for token_id in _eos_token_ids(directory) if 0 <= token_id < fields["vocab_size"])
    return fields | {"family": family, "eos_token_ids": ends}


def _contents(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise ModelError(f"{path}: larger than {_MAX_BYTES} bytes")
    return text


def _eos_token_ids(directory: Path) -> tuple[int, ...]:
    """Every end token that either file names; chat models name theirs in generation_config.json alone."""
    found: set[int] = set()
    for path in (directory / "config.json", directory / "generation_config.json"):
        if path.exists():
            found.update(_end_tokens(path))
    return tuple(sorted(found))


def _end_tokens(path: Path) -> list[int]:
    try:
        ids = msgspec.json.decode(_contents(path), type=_EndTokens).eos_token_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: {error}") from error
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
