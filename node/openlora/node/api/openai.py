"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from openlora.node.api.catalog import ServedAdapter
from openlora.node.api.openai_answers import ChatCompletion, Completion, ModelCard, ModelList
from openlora.node.api.openapi import answers
from openlora.node.api.schemas import ChatRequest, CompletionRequest
from openlora.node.api.service import Choice, TextService
from openlora.node.api.shapes import ChatShape, CompletionShape
from openlora.node.api.sse import EventStream, SendEvents, while_connected
from openlora.node.engine.text import TextDelta
from openlora.node.errors import RequestError

OWNER = "openlora"
NO_MODEL = "There is no such model."


def create_openai_router(service: TextService) -> APIRouter:
    """The routes over one service; whoever mounts them installs the error handlers and the guard."""
    router = APIRouter()

    @router.get("/v1/models", responses=answers(ModelList))
    async def list_models() -> dict[str, Any]:
        """The base model and its adapters."""
        entries = (service.catalog.base, *service.catalog.adapters)
        return {"object": "list", "data": [_card(service, entry) for entry in entries]}

    @router.get("/v1/models/{name:path}", responses=answers(ModelCard, "There is no such model."))
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        for entry in (service.catalog.base, *service.catalog.adapters):
            if entry.name == name:
                return _card(service, entry)
        raise RequestError("model_not_found", f"The model {name[:128]!r} does not exist.", "model")

    @router.post("/v1/completions", response_model=None, responses=answers(Completion, NO_MODEL))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Goes on where the prompt ends."""
        return await _respond(service, body, CompletionShape(body, service.text), request)

    @router.post("/v1/chat/completions", response_model=None, responses=answers(ChatCompletion, NO_MODEL))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        return await _respond(service, body, ChatShape(body, service.text), request)

    return router


async def _respond(
    service: TextService,
    body: CompletionRequest | ChatRequest,
    shape: CompletionShape | ChatShape,
    request: Request,
) -> Response:
    tenant: str = request.state.tenant
    if body.stream:
        return EventStream(lambda send: _stream(service, body, shape, tenant, send), service.limits.send_timeout_s)
    async with while_connected(request.receive):
        return JSONResponse(await _whole(service, body, shape, tenant))


async def _whole(
    service: TextService, body: CompletionRequest | ChatRequest, shape: CompletionShape | ChatShape, tenant: str
) -> dict[str, Any]:
    async with service.admitted(body, tenant) as plan:
        deltas: dict[int, list[TextDelta]] = {choice.index: [] for choice in plan.choices}

        async def keep(choice: Choice, delta: TextDelta) -> None:
            deltas[choice.index].append(delta)

        await service.run(plan, keep)
        answers = [(choice, deltas[choice.index]) for choice in plan.choices]
        generated = sum(len(delta.tokens) for _, given in answers for delta in given)
        return shape.whole(answers, _usage(plan.prompt_tokens, generated))


async def _stream(
    service: TextService,
    body: CompletionRequest | ChatRequest,
    shape: CompletionShape | ChatShape,
    tenant: str,
    send_events: SendEvents,
) -> list[dict[str, Any]]:
    generated = 0

    async def send(choice: Choice, delta: TextDelta) -> None:
        nonlocal generated
        generated += len(delta.tokens)
        if chunks := shape.chunks(choice, delta):
            await send_events(*chunks)

    async with service.admitted(body, tenant) as plan:
        await service.run(plan, send)
    return [shape.usage_chunk(_usage(plan.prompt_tokens, generated))] if body.include_usage else []


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _card(service: TextService, entry: ServedAdapter) -> dict[str, Any]:
    """As vLLM lists models: an adapter's parent is the base, its root the directory it came from."""
    base = service.catalog.base
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": OWNER,
        "root": entry.path,
        "parent": None if entry is base else base.name,
        "max_model_len": service.engine.info.max_context,
    }
