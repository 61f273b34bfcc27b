"""What OpenAI's routes answer, as types: for the reference. https://platform.openai.com/docs/api-reference"""

from typing import Literal

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of what follows."""


class ModelCard(Answer, frozen=True):
    """The base model, or an adapter, whose `parent` is the base; as vLLM lists them."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(Answer, frozen=True):
    """What can be asked for in `model`."""

    object: Literal["list"]
    data: tuple[ModelCard, ...]


class Usage(Answer, frozen=True):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Answer, frozen=True):
    """One entry a token."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class CompletionChoice(Answer, frozen=True):
    """`finish_reason` is null in the chunks before the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer, frozen=True):
    """With `stream`, server-sent events of this shape, `usage` null or left out but in the last, and then [DONE]."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = None


class TokenLogprob(Answer, frozen=True):
    """One token; `bytes` where its text is not whole characters."""

    token: str
    logprob: float | None
    bytes: tuple[int, ...]
    top_logprobs: tuple["TokenLogprob", ...] = ()


class ChatLogprobs(Answer, frozen=True):
    """One entry a token."""

    content: tuple[TokenLogprob, ...]
    refusal: None


class ChatMessage(Answer, frozen=True):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer, frozen=True):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer, frozen=True):
    """The whole answer; with `stream`, server-sent events of ChatCompletionChunk, and then [DONE]."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage


class ChatDelta(Answer, frozen=True):
    """What was added: the role first, then text, then nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer, frozen=True):
    """`finish_reason` is null but in the last."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(Answer, frozen=True):
    """One event of a stream; `usage` comes with an empty list of choices at the end, where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: Usage | None = None


class Health(Answer, frozen=True):
    """Whether the engine answers."""

    status: str


STRUCTS = (ModelList, ModelCard, Completion, ChatCompletion, ChatCompletionChunk, Health)
