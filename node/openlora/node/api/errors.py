"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from openlora.node.errors import ChainError, EngineDied, OpenLoraError, Overloaded, RequestError

log = logging.getLogger(__name__)

_NOT_FOUND = ("model_not_found", "adapter_not_found", "not_enabled", "unknown_job", "no_receipt")


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: OpenLoraError) -> tuple[int, dict[str, object]]:
    """The status and the body of a refusal."""
    match error:
        case Overloaded():
            return 429, error_body(str(error), "requests", error.param, "rate_limit_exceeded")
        case RequestError(code=code) if code in _NOT_FOUND:
            return 404, error_body(str(error), "invalid_request_error", error.param, code)
        case RequestError(code=code):
            return 400, error_body(str(error), "invalid_request_error", error.param, code)
        case ChainError():
            return 503, error_body(str(error), "server_error", None, "chain_unavailable")
        case EngineDied():
            return 503, error_body(str(error), "server_error", None, "engine_unavailable")
        case _:
            return 400, error_body(str(error), "invalid_request_error")


def install_error_handlers(app: FastAPI, retry_after_s: int) -> None:
    """Every refusal of every route leaves in this shape, 429 and 503 with Retry-After."""
    retry = {"Retry-After": str(retry_after_s)}

    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OpenLoraError)
        status, body = describe(error)
        return JSONResponse(body, status, headers=retry if status in (429, 503) else None)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        param, message = _first_problem(error)
        return JSONResponse(error_body(message, "invalid_request_error", param, "invalid_value"), 400)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        message = str(error.detail)
        if message == "There was an error parsing the body":  # FastAPI's own words: JSON's errors come as others
            message = "The body is not JSON in UTF-8."
        if message in ("Not Found", "Method Not Allowed"):  # Starlette's own words
            message = f"{request.method} {request.url.path} is no route of this server; GET /openapi.json lists them."
        return JSONResponse(error_body(message, kind), error.status_code, headers=_plain(error.headers))

    async def gone(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse(None, 499)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("event=request_failed path=%s", request.url.path, exc_info=error)
        return JSONResponse(error_body("The server failed; see its log.", "server_error", None, "internal_error"), 500)

    app.add_exception_handler(OpenLoraError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(Exception, unexpected)


def _first_problem(error: RequestValidationError) -> tuple[str | None, str]:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if part != "body")
    if problem["type"] == "json_invalid":
        return None, f"The body is not JSON: {problem['ctx']['error']} at character {where}."
    if not where:
        return None, "The body must be a JSON object, sent with Content-Type: application/json."
    return where, f"{where}: {problem['msg'].removeprefix('Value error, ')}."


def _plain(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(headers) if headers else None
