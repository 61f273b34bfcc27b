"""What an operator tells a running node, on `agent.sock` alone."""

import msgspec
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from openlora.node.errors import ConfigError
from openlora.node.steering import Steering


def steering_router(steering: Steering) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/drain")
    async def drain() -> dict[str, bool]:
        """No job is claimed from now on; those under way are finished."""
        steering.drain(True)
        return {"draining": True}

    @router.delete("/drain")
    async def claim_again() -> dict[str, bool]:
        """Jobs are claimed again."""
        steering.drain(False)
        return {"draining": False}

    @router.post("/reload")
    async def reload() -> Response:
        """Reads the configuration again: {"changed", "needs_restart"}, or 422 and nothing changes."""
        try:
            document = msgspec.json.encode(steering.reload())
        except ConfigError as error:
            return JSONResponse({"error": {"code": "bad_config", "message": str(error)}}, status_code=422)
        return Response(document, media_type="application/json")

    return router
