"""The shapes of OpenAI's answers: whole and in chunks, for completions and for chats."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from openlora.node.api.schemas import ChatRequest, CompletionRequest
from openlora.node.api.service import Choice
from openlora.node.engine.messages import Token
from openlora.node.engine.text import TextDelta, TextModel


class CompletionShape:
    """A "text_completion": chunks and the whole answer look alike."""

    def __init__(self, request: CompletionRequest, text: TextModel) -> None:
        self._envelope = _Envelope("cmpl", request.model, request.include_usage)
        self._text = text
        self._offsets: dict[int, int] = {}
        self._begun: set[int] = set()

    def chunks(self, choice: Choice, delta: TextDelta) -> list[dict[str, Any]]:
        """The events that a delta makes; none while its text is held back."""
        echo = "" if choice.index in self._begun else choice.echo
        self._begun.add(choice.index)
        body = self._choice(choice, echo, [delta], delta.finish_reason)
        if body["text"] or body["logprobs"] or delta.finish_reason:
            return [self._envelope.chunk("text_completion", [body])]
        return []

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._envelope.usage_chunk("text_completion", usage)

    def whole(self, answers: Sequence[tuple[Choice, Sequence[TextDelta]]], usage: dict[str, int]) -> dict[str, Any]:
        choices = [self._choice(choice, choice.echo, deltas, deltas[-1].finish_reason) for choice, deltas in answers]
        return self._envelope.whole("text_completion", choices, usage)

    def _choice(self, choice: Choice, echo: str, deltas: Sequence[TextDelta], reason: str | None) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": echo + "".join(delta.text for delta in deltas),
            "logprobs": self._logprobs(choice, [token for delta in deltas for token in delta.tokens]),
            "finish_reason": reason,
        }

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if choice.sampling.logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offset = self._offsets.get(choice.index, 0)
            offsets.append(offset)
            length = len(self._text.token_bytes(token.token_id).decode(errors="ignore"))
            self._offsets[choice.index] = offset + length
        return {
            "tokens": [self._name(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._name(token_id): logprob for token_id, logprob in (*token.top, (token.token_id, token.logprob))}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _name(self, token_id: int) -> str:
        """The token's text, or its bytes where they are no text alone."""
        data = self._text.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatShape:
    """A "chat.completion", and its chunks: the role first, then text, then an empty delta with the reason."""

    def __init__(self, request: ChatRequest, text: TextModel) -> None:
        self._envelope = _Envelope("chatcmpl", request.model, request.include_usage)
        self._text = text
        self._begun: set[int] = set()

    def chunks(self, choice: Choice, delta: TextDelta) -> list[dict[str, Any]]:
        """The events that a delta makes; none while its text is held back."""
        chunks = []
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            chunks.append(self._chunk(choice, {"role": "assistant", "content": ""}))
        logprobs = self._logprobs(choice, delta.tokens)
        if delta.text or logprobs:
            chunks.append(self._chunk(choice, {"content": delta.text}, logprobs))
        if delta.finish_reason is not None:
            chunks.append(self._chunk(choice, {}, None, delta.finish_reason))
        return chunks

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._envelope.usage_chunk("chat.completion.chunk", usage)

    def whole(self, answers: Sequence[tuple[Choice, Sequence[TextDelta]]], usage: dict[str, int]) -> dict[str, Any]:
        choices = [
            {
                "index": choice.index,
                "message": {
                    "role": "assistant",
                    "content": "".join(delta.text for delta in deltas),
                    "refusal": None,
                },
                "logprobs": self._logprobs(choice, [token for delta in deltas for token in delta.tokens]),
                "finish_reason": deltas[-1].finish_reason,
            }
            for choice, deltas in answers
        ]
        return self._envelope.whole("chat.completion", choices, usage)

    def _chunk(
        self, choice: Choice, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._envelope.chunk("chat.completion.chunk", [body])

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if choice.sampling.logprobs is None:
            return None
        content = [
            self._entry(token.token_id, token.logprob) | {"top_logprobs": [self._entry(*other) for other in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        data = self._text.token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


class _Envelope:
    """What surrounds the choices."""

    def __init__(self, id_prefix: str, model: str, include_usage: bool) -> None:
        self._fields = {"id": f"{id_prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}
        self._no_usage_yet = {"usage": None} if include_usage else {}

    def whole(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._fields, "object": kind, "choices": choices, "usage": usage}

    def chunk(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._fields, "object": kind, "choices": choices, **self._no_usage_yet}

    def usage_chunk(self, kind: str, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._fields, "object": kind, "choices": [], "usage": usage}
