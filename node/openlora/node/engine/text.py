"""Text in, text out, over an engine that knows token ids only.

The one path from a prompt to text, used by the HTTP face and by the job worker alike.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from openlora.node.documents import ChatMessage, FinishReason, Usage
from openlora.node.engine.chat import ChatTemplate
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.connection import Tokens
from openlora.node.engine.detokenizer import Detokenizer, token_bytes
from openlora.node.engine.messages import AdapterUse, Sampling, Token
from openlora.node.engine.stops import StopScanner
from openlora.node.engine.tokenizer_files import TokenizerFiles, read_tokenizer_files
from openlora.node.errors import ModelError, RequestError
from openlora.node.malformed import quote


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What tokens that came together added. `text` may be empty: inside a character, or held back for a stop string."""

    text: str
    tokens: Tokens
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; `token_ids` has the end token or the stop string's tokens, `text` has neither."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.token_id for token in self.tokens)


class TextModel:
    """A base model's tokenizer, chat template and detokenizer. Holds no torch and no weights."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            self._tokenizer = _of_whole_texts(files.tokenizer)
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"the model's tokenizer cannot be read: {quote(str(error))}") from None
        self._definition = files.tokenizer
        self._table = token_bytes(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._template = None
        if files.chat_template is not None:
            control_tokens = [token.content for token in added if token.special]
            self._template = ChatTemplate(files.chat_template, control_tokens, files.names)
        self.longest_token_bytes = max(map(len, [*self._table, *(token.content.encode() for token in added)]))

    @classmethod
    def load(cls, path: Path) -> "TextModel":
        """From a Hugging Face directory or a GGUF file. Blocks for 0.5 s, for GGUF 5 s. Raises ModelError."""
        return cls(read_tokenizer_files(path))

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens, with those that the tokenizer itself puts in front (`<s>`). Raises RequestError."""
        return self._ids(self._tokenizer, text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The tokens of a conversation, up to where the assistant speaks. Raises RequestError."""
        if self._template is None:
            raise RequestError("no_chat_template", "this model has no chat template; send a prompt instead", "messages")
        token_ids: list[int] = []
        for piece, trusted in self._template.render(messages):
            tokenizer = self._tokenizer if trusted else self._literal_tokenizer
            token_ids += self._ids(tokenizer, piece, add_special_tokens=False)
        return token_ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        return self.detokenizer().decode(token_ids)

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._table)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; for a special token, its name."""
        if token_id < len(self._table) and self._table[token_id]:
            return self._table[token_id]
        return (self._tokenizer.id_to_token(token_id) or "").encode()

    async def complete(
        self,
        engine: InferenceEngine,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapters: Sequence[AdapterUse] = (),
        stop: Sequence[str] = (),
        tenant: str = "",
    ) -> AsyncGenerator[TextDelta, None]:
        """Generate until an end token, a stop string or `max_tokens`; a delta for all tokens that have come, the last
        with a reason.

        Text ends exactly before the stop string, and generation with the token that completes it, which still counts
        as generated. Closing the generator frees the request. Raises RequestError, Overloaded, EngineDied.
        """
        detokenizer, stops = self.detokenizer(), StopScanner(stop)
        async with aclosing(engine.generate(prompt_ids, sampling, adapters, tenant)) as answer:
            async for tokens in answer:
                delta = _delta(tokens, detokenizer, stops)
                yield delta
                if delta.finish_reason is not None:
                    return

    @cached_property
    def _literal_tokenizer(self) -> Tokenizer:
        """Reads control tokens as the characters they are spelled with."""
        tokenizer = _of_whole_texts(self._definition)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell one: "\\ud800"
            raise RequestError("bad_input", "the text holds half of a surrogate pair, which is no character") from None
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


def _of_whole_texts(definition: str) -> Tokenizer:
    """The tokenizer without the truncation and padding that training may have left in its file."""
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _delta(tokens: Tokens, detokenizer: Detokenizer, stops: StopScanner) -> TextDelta:
    """What `tokens` add, up to one that ends the text."""
    text = ""
    for count, token in enumerate(tokens, 1):
        ends = token.finish_reason == "stop"  # an end token is no text, even where its name would be
        text += stops.push("" if ends else detokenizer.push(token.token_id))
        if token.finish_reason is not None:
            text += stops.push(detokenizer.finish()) + stops.finish()
        if stops.hit or ends:
            return TextDelta(text, tokens[:count], "stop")
        if token.finish_reason is not None:
            return TextDelta(text, tokens[:count], "length")
    return TextDelta(text, tokens)


async def collect(deltas: AsyncIterable[TextDelta], prompt_tokens: int) -> Completion:
    """The whole answer of `TextModel.complete`."""
    texts: list[str] = []
    tokens: list[Token] = []
    reason: FinishReason | None = None
    async for delta in deltas:
        texts.append(delta.text)
        tokens += delta.tokens
        reason = delta.finish_reason
    assert reason is not None
    return Completion("".join(texts), tuple(tokens), reason, Usage(prompt_tokens, len(tokens)))
