"""vLLM's routes for loading adapters at run time; answered with 404 unless the operator enabled them."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from openlora.node.api.catalog import ServedAdapter, check_name
from openlora.node.api.openapi import missing
from openlora.node.api.schemas import LoadAdapterRequest, UnloadAdapterRequest
from openlora.node.api.service import TextService
from openlora.node.errors import ConfigError, RequestError

OFF = "Loading adapters at run time is off."
NOT_LOADED = "There is no such adapter."


def create_adapter_router(service: TextService, *, enabled: bool) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse, responses=missing(OFF))
    async def load(body: LoadAdapterRequest) -> PlainTextResponse:
        """Loads an adapter from this machine's disk under a name."""
        _refuse_unless(enabled)
        try:
            name = check_name(body.lora_name)
        except ConfigError as error:
            raise RequestError("invalid_value", f"{error}.", "lora_name") from None
        if name == service.catalog.base.name or (name in service.catalog and not body.load_inplace):
            raise RequestError("already_loaded", f"The name {name!r} is taken; unload it first.", "lora_name")
        await service.engine.load_adapter(name, body.lora_path)
        service.catalog.add(ServedAdapter(name, body.lora_path))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse, responses=missing(OFF, NOT_LOADED))
    async def unload(body: UnloadAdapterRequest) -> PlainTextResponse:
        """Forgets an adapter; requests under way finish."""
        _refuse_unless(enabled)
        name = body.lora_name
        if name == service.catalog.base.name or name not in service.catalog:
            raise RequestError("adapter_not_found", f"The adapter {name!r} is not loaded.", "lora_name")
        service.catalog.remove(name)
        await service.engine.unload_adapter(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return router


def _refuse_unless(enabled: bool) -> None:
    if not enabled:
        raise RequestError(
            "not_enabled", "Loading adapters at run time is off; start the server with --enable-adapter-loading."
        )
