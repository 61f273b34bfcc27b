"""The HTTP application of `openlora serve`; the agent mounts the same routers beside its own."""

from collections.abc import Callable, Collection

import msgspec
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from openlora.node.api.adapters import create_adapter_router
from openlora.node.api.errors import install_error_handlers
from openlora.node.api.guard import LOOPBACK_NAMES, Guard
from openlora.node.api.keys import BrowserSessions
from openlora.node.api.limits import Limits
from openlora.node.api.openai import create_openai_router
from openlora.node.api.openai_answers import STRUCTS, Health
from openlora.node.api.openapi import DescribedApi, answers
from openlora.node.api.service import TextService
from openlora.node.engine.client import InferenceEngine


def create_app(
    service: TextService,
    *,
    keys: Collection[str] = (),
    host_names: Collection[str] = LOOPBACK_NAMES,
    adapter_loading: bool = False,
) -> FastAPI:
    """Routes, errors and guard. Without `keys` the app is for loopback alone and answers only to `host_names`."""
    app = create_bare_app(service.limits, keys, host_names, structs=STRUCTS)
    app.include_router(create_openai_router(service))
    app.include_router(create_adapter_router(service, enabled=adapter_loading))

    @app.get("/health", responses=answers(Health) | {503: {"description": "The engine is restarting."}})
    async def health() -> JSONResponse:
        """For load balancers."""
        return _health(service.engine)

    return app


def create_bare_app(
    limits: Limits,
    keys: Collection[str],
    host_names: Collection[str] = LOOPBACK_NAMES,
    *,
    sessions: BrowserSessions | None = None,
    public: Callable[[str], bool] = lambda path: False,
    structs: Collection[type[msgspec.Struct]] = (),
) -> FastAPI:
    """No routes yet: errors in OpenAI's shape, and the guard before everything. `structs` are what routes answer."""
    app = DescribedApi("OpenLoRA", "An OpenLoRA node over HTTP.", structs)
    install_error_handlers(app, limits.retry_after_s)
    app.add_middleware(Guard, limits=limits, keys=keys, host_names=host_names, sessions=sessions, public=public)
    return app


def _health(engine: InferenceEngine) -> JSONResponse:
    if engine.alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "the engine is restarting"}, 503)
