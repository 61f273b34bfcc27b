"""Where a base model keeps its tokenizer and chat template, and how they are read without torch.

`tokenizer.json` is read by the `tokenizers` library alone: 0.3 s and 60 MB, where transformers' AutoTokenizer imports
torch (5 s and 390 MB). What has no such file (GGUF, a bare SentencePiece model) is converted by transformers in a
child process, which hands back the same two texts and ends: `python -m openlora.node.engine.tokenizer_files PATH`.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from openlora.node.engine.gguf_file import GgufFile
from openlora.node.errors import ModelError
from openlora.node.malformed import MALFORMED, quote

_CONVERSION_TIMEOUT_S = 300
# How a GGUF file may say that its texts are cut before their bytes are merged: what transformers cuts alike. It cuts as
# GPT-2 does where it does not know the name.
_SPLITS = {
    *("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "tekken", "pixtral", "qwen2", "deepseek-r1-qwen"),
    *("megrez", "midm-2.0", "kormo", "default", "gpt-2", "smollm"),
}


class TokenizerFiles(msgspec.Struct, frozen=True):
    """`tokenizer` is the text of a tokenizer.json; `names` the special tokens by role ("bos_token")."""

    tokenizer: str
    chat_template: str | None
    names: dict[str, str]


def read_tokenizer_files(path: Path) -> TokenizerFiles:
    """From a Hugging Face directory or a GGUF file. Raises ModelError."""
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a Hugging Face directory or a GGUF file")
    if not (path / "tokenizer.json").is_file():
        _require_convertible(path)
        return _convert_in_child(path)
    try:
        config = _json_object(path / "tokenizer_config.json")
        return TokenizerFiles(
            tokenizer=(path / "tokenizer.json").read_text(),
            chat_template=_chat_template(path, config),
            names=_names(_json_object(path / "special_tokens_map.json") | config),
        )
    except (OSError, *MALFORMED) as error:
        raise ModelError(f"the tokenizer of {path} cannot be read: {error}") from None


def _require_convertible(path: Path) -> None:
    if path.is_dir():
        if (path / "vocab.json").is_file():
            return
        if not (path / "tokenizer.model").is_file():
            raise ModelError(f"{path} holds no tokenizer; tokenizer.json, tokenizer.model or vocab.json is needed")
        if find_spec("sentencepiece") is None:
            raise ModelError(
                f"{path} holds no tokenizer.json, and to read tokenizer.model takes the sentencepiece package; install "
                "it, or save tokenizer.json with transformers"
            )
        return
    file = GgufFile(path)
    file.value("tokenizer.ggml.model", str)
    split = file.value("tokenizer.ggml.pre", str, "default")
    if split not in _SPLITS:
        raise ModelError(f"tokenizer.ggml.pre {quote(split)} is not served; {', '.join(sorted(_SPLITS))} are")
    tokens = file.length("tokenizer.ggml.tokens")
    for role in ("bos", "eos", "unknown", "padding"):
        key = f"tokenizer.ggml.{role}_token_id"
        if not 0 <= (token := file.value(key, int, 0)) < tokens:
            raise ModelError(f"{path}: {key} {token} is none of the file's {tokens} tokens")


def _json_object(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.is_file() else {}


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text()
    match config.get("chat_template"):
        case str(template):
            return template
        case list(named):  # several, by purpose
            for entry in named:
                match entry:
                    case {"name": "default", "template": str(template)}:
                        return template
    return None


def _names(config: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        match config.get(role):
            case str(token) | {"content": str(token)}:
                names[role] = token
    return names


def _convert_in_child(path: Path) -> TokenizerFiles:
    command = [sys.executable, "-m", __name__, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_CONVERSION_TIMEOUT_S, check=False)  # noqa: S603 - our own module
    except subprocess.TimeoutExpired:
        raise ModelError(f"the tokenizer of {path} was not converted within {_CONVERSION_TIMEOUT_S} s") from None
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"the tokenizer of {path} cannot be read: {reason}")
    return msgspec.json.decode(done.stdout, type=TokenizerFiles)


def _convert(path: Path) -> TokenizerFiles:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # torch comes with them: only ever in the child

    if path.is_file():  # AutoTokenizer would read the model's configuration first, which takes 11 s for Llama 3's file
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError("it has no fast implementation")
    return TokenizerFiles(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        chat_template=tokenizer.chat_template,
        names={role: token for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_convert(Path(sys.argv[1]))))
