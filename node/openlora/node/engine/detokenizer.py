"""Token ids to text, one token at a time.

Every token stands for fixed bytes, and text is those bytes decoded as UTF-8; so a token costs O(its bytes), and a
character that spans tokens appears when its last byte does. Two decoders cover the served families: byte-level BPE
(GPT-2, Llama 3, Qwen, SmolLM, Falcon) and SentencePiece with byte fallback (Llama 2, Mistral, Gemma).
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from openlora.node.errors import ModelError

MAX_TOKENS = 1 << 22
_WORD_START = "▁"  # SentencePiece's visible space


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token id; special tokens, which are not text, and unused ids have none.

    Raises ModelError for a decoder whose text is not the concatenation of its tokens' bytes.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocabulary.values(), default=-1)
    if not 0 <= last < MAX_TOKENS:  # each id below takes memory; for want of it `to_str` aborts the process
        raise ModelError(f"the tokenizer's last token is {last}; from 0 to {MAX_TOKENS - 1} is served")
    kinds = set(_kinds(json.loads(tokenizer.to_str())["decoder"]))
    if "ByteLevel" in kinds:
        encode: Callable[[str], bytes] = _ByteLevel()
    elif kinds & {"ByteFallback", "Metaspace"}:
        encode = _sentence_piece
    else:
        raise ModelError(
            f"the tokenizer's decoder ({', '.join(sorted(kinds)) or 'none'}) is not supported; "
            "use a model with a byte-level or SentencePiece tokenizer"
        )
    table = [b""] * (1 + last)
    for token, token_id in vocabulary.items():
        table[token_id] = encode(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        if added.special:
            table[token_id] = b""
    return table


class Detokenizer:
    """The text of one growing sequence. Bytes that can never become a character are U+FFFD."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._table[token_id] if token_id < len(self._table) else b"")

    def finish(self) -> str:
        """U+FFFD if the sequence ended inside a character."""
        return self._decoder.decode(b"", final=True)

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(map(self.push, token_ids)) + self.finish()


class _ByteLevel:
    """GPT-2's alphabet: printable Latin-1 letters stand for themselves, the other 68 bytes for U+0100 and up."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._byte_of = {chr(byte): byte for byte in printable}
        self._byte_of |= {chr(256 + index): byte for index, byte in enumerate(others)}

    def __call__(self, token: str) -> bytes:
        try:
            return bytes(self._byte_of[letter] for letter in token)
        except KeyError:  # an added token, written as plain text
            return token.encode()


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(_WORD_START, " ").encode()


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    yield str(decoder["type"])
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)
