"""What OpenAI's completion routes accept, and what of it this server means."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from openlora.node.documents import MAX_STOP_CHARS, MAX_STOPS, ChatMessage
from openlora.node.errors import RequestError

MAX_MESSAGES = 4096

# Fields that OpenAI defines and that change no answer here.
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Fields that would change the answer, with the values at which they do not. Any other value is refused, not ignored.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

TextPrompt = str | list[int]


def _prompts(value: object) -> list[TextPrompt]:
    """One text, several, one list of token ids, or several: always as a list of prompts."""
    match value:
        case str():
            return [value]
        case [int(), *_]:
            return [_token_ids(value)]
        case [str(), *_]:
            return [_text(item) for item in value]
        case [list(), *_]:
            return [_token_ids(item) for item in value]
    raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("a list of prompts is all texts or all lists of token ids")


def _token_ids(value: object) -> list[int]:
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return value
    raise ValueError("a prompt of token ids is a non-empty list of integers")


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a text or a list of texts")
    if len(stops) > MAX_STOPS or any(not 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters")
    return stops


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis: never added


class GenerationRequest(BaseModel):
    """What both routes share. A field that is null has its default."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str = Field(max_length=2048)
    n: int | None = Field(None, ge=1, le=4)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Annotated[list[str], PlainValidator(_stops, json_schema_input_type=str | list[str] | None)] = []
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def refuse_what_is_not_served(self) -> None:
        """Raises RequestError for a field that would be silently disobeyed, or that nobody defines."""
        for name, value in (self.model_extra or {}).items():
            if name in _IGNORED or (name in _NEUTRAL and (value is None or value in _NEUTRAL[name])):
                continue
            if name in _NEUTRAL:
                raise RequestError("unsupported_parameter", f"{name} is not supported by this server.", name)
            raise RequestError("unknown_parameter", f"Unrecognized request argument: {name[:64]!r}.", name[:64])
        if self.stream_options is not None and not self.stream:
            raise RequestError("invalid_value", "stream_options needs stream: true.", "stream_options")


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[
        list[TextPrompt],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)

    def refuse_what_is_not_served(self) -> None:
        super().refuse_what_is_not_served()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError("unsupported_parameter", "best_of must equal n.", "best_of")
        if self.echo and self.logprobs is not None:
            raise RequestError("unsupported_parameter", "echo is not supported together with logprobs.", "echo")


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class InputMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    @field_validator("content", mode="wrap")
    @classmethod
    def _in_one_sentence(cls, content: object, validated: ValidatorFunctionWrapHandler) -> object:
        """What is wrong, where each kind of content would have a sentence of its own."""
        try:
            return validated(content)
        except ValidationError:
            raise ValueError(
                'give a string, or parts that are {"type": "text", "text": "..."}, and no others'
            ) from None

    def plain(self) -> ChatMessage:
        """The message as the job documents have it. Raises RequestError for parts that it has no place for."""
        for field, value in (self.model_extra or {}).items():
            if value:
                raise RequestError("unsupported_parameter", f"{field[:64]} in a message is not supported.", "messages")
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def refuse_what_is_not_served(self) -> None:
        super().refuse_what_is_not_served()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError(
                "invalid_value", "max_tokens and max_completion_tokens differ; give one of them.", "max_tokens"
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError("invalid_value", "top_logprobs needs logprobs: true.", "top_logprobs")


class LoadAdapterRequest(BaseModel):
    """POST /v1/load_lora_adapter, as vLLM has it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str = Field(min_length=1, max_length=128)
    lora_path: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """POST /v1/unload_lora_adapter, as vLLM has it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str = Field(min_length=1, max_length=128)
    lora_int_id: int | None = None
