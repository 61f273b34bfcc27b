"""Requests as people write them, made into generations as the engine runs them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from openlora.node.api.catalog import Catalog
from openlora.node.api.limits import Admission, Limits
from openlora.node.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, TextPrompt
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.messages import AdapterUse, Sampling
from openlora.node.engine.text import TextDelta, TextModel
from openlora.node.errors import RequestError
from openlora.node.tasks import task_group

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_INLINE_CHARS = 16 << 10  # what is tokenized in the event loop: under 10 ms


@dataclass(frozen=True, slots=True)
class Choice:
    """One generation: `index` of the answer's choices."""

    index: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    adapters: tuple[AdapterUse, ...]
    stop: tuple[str, ...]
    echo: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one HTTP request asks of the engine."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    tenant: str


Emit = Callable[[Choice, TextDelta], Awaitable[None]]


class TextService:
    """Generates text for the HTTP face: names to recipes, text to tokens, within the limits."""

    def __init__(self, engine: InferenceEngine, text: TextModel, catalog: Catalog, limits: Limits) -> None:
        self.engine, self.text, self.catalog, self.limits = engine, text, catalog, limits
        self.admission = Admission(limits)

    @asynccontextmanager
    async def admitted(self, request: CompletionRequest | ChatRequest, tenant: str) -> AsyncIterator[Plan]:
        """Holds the request's place in the queue for the length of the block. Raises RequestError, Overloaded."""
        request.refuse_what_is_not_served()
        adapters = self.catalog.resolve(request.model)
        prompts = request.prompt if isinstance(request, CompletionRequest) else ("",)
        if (requests := len(prompts) * (request.n or 1)) > self.limits.max_choices:
            raise RequestError("invalid_value", f"prompts times n may be {self.limits.max_choices} at most.", "prompt")
        with self.admission.hold(tenant, requests=requests):
            plan = await self._plan(request, adapters, tenant)
            tokens = sum(len(choice.prompt_ids) + choice.sampling.max_tokens for choice in plan.choices)
            with self.admission.hold(tenant, tokens=tokens):
                yield plan

    async def run(self, plan: Plan, emit: Emit) -> None:
        """Runs all choices at once; the first failure ends them all and leaves as itself."""
        async with task_group() as group:
            for choice in plan.choices:
                group.create_task(self._run_choice(choice, plan.tenant, emit), name=f"choice-{choice.index}")

    async def _run_choice(self, choice: Choice, tenant: str, emit: Emit) -> None:
        deltas = self.text.complete(
            self.engine, choice.prompt_ids, choice.sampling, choice.adapters, choice.stop, tenant
        )
        async with aclosing(deltas):
            async for delta in deltas:
                await emit(choice, delta)

    async def _plan(
        self, request: CompletionRequest | ChatRequest, adapters: tuple[AdapterUse, ...], tenant: str
    ) -> Plan:
        echoes: Sequence[str] = ("",)
        if isinstance(request, CompletionRequest):
            prompts = [await self._prompt_ids(prompt) for prompt in request.prompt]
            if request.echo:
                echoes = [p if isinstance(p, str) else self.text.decode(p) for p in request.prompt]
            else:
                echoes = [""] * len(prompts)
        else:
            prompts = [await self._chat_ids(request)]
        n = request.n or 1
        seed = secrets.randbits(64) if request.seed is None else request.seed
        choices = tuple(
            Choice(
                index=index * n + number,
                prompt_ids=prompt_ids,
                sampling=self._sampling(request, len(prompt_ids), (seed + number) % 2**64),
                adapters=adapters,
                stop=tuple(request.stop),
                echo=echo,
            )
            for index, (prompt_ids, echo) in enumerate(zip(prompts, echoes, strict=True))
            for number in range(n)
        )
        return Plan(choices, sum(map(len, prompts)), tenant)

    async def _prompt_ids(self, prompt: TextPrompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            self._refuse_long_text(len(prompt), "prompt")
            ids = await _off_loop(len(prompt), self.text.encode, prompt)
        else:
            ids = prompt
            if not all(0 <= token_id < self.engine.info.vocab_size for token_id in ids):
                raise RequestError(
                    "invalid_value", f"token ids lie from 0 to {self.engine.info.vocab_size - 1}.", "prompt"
                )
        if not ids:
            raise RequestError("invalid_value", "The prompt is empty.", "prompt")
        return tuple(ids)

    async def _chat_ids(self, request: ChatRequest) -> tuple[int, ...]:
        messages = [message.plain() for message in request.messages]
        chars = sum(len(message.content) for message in messages)
        self._refuse_long_text(chars, "messages")
        return tuple(await _off_loop(chars, self.text.encode_chat, messages))

    def _refuse_long_text(self, chars: int, param: str) -> None:
        """Before tokenizing: a token stands for a bounded number of characters."""
        if chars > self.engine.info.max_context * self.text.longest_token_bytes:
            raise self._too_long(f"a text of {chars} characters", param)

    def _sampling(self, request: GenerationRequest, prompt_tokens: int, seed: int) -> Sampling:
        temperature = 1.0 if request.temperature is None else request.temperature
        return Sampling(
            max_tokens=self._max_tokens(request, prompt_tokens),
            temperature=temperature,
            top_k=max(request.top_k or 0, 0),
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=seed,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=bool(request.ignore_eos),
            logprobs=_logprobs(request),
        )

    def _max_tokens(self, request: GenerationRequest, prompt_tokens: int) -> int:
        chat = isinstance(request, ChatRequest)
        room = self.engine.info.max_context - prompt_tokens
        asked = request.max_tokens
        if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
            asked = request.max_completion_tokens
        if room < 1 or (asked is not None and asked > room):
            detail = f"{prompt_tokens} tokens of prompt" + (f" and {asked} of output" if asked is not None else "")
            raise self._too_long(detail, "messages" if chat else "prompt")
        if asked is not None:
            return asked
        return room if chat else min(DEFAULT_COMPLETION_TOKENS, room)

    def _too_long(self, detail: str, param: str) -> RequestError:
        limit = self.engine.info.max_context
        return RequestError(
            "context_length_exceeded",
            f"This model's context is {limit} tokens, prompt and output together; the request has {detail}.",
            param,
        )


def _logprobs(request: GenerationRequest) -> int | None:
    match request:
        case CompletionRequest(logprobs=count):
            return count
        case ChatRequest(logprobs=True, top_logprobs=count):
            return count or 0
    return None


async def _off_loop(chars: int, encode: Callable[..., list[int]], argument: object) -> list[int]:
    """Tokenize in a thread what would hold up the event loop."""
    return encode(argument) if chars <= _INLINE_CHARS else await asyncio.to_thread(encode, argument)
