"""The dashboard page: a few files of this package, served as they are. It loads nothing from anywhere else."""

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

TYPES: Final = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
# Strangers' names are on this page: only our own files run, and nothing may make a script or markup of a text.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",  # a browser asks each time whether its copy is still the right one
    }
)


def is_page(path: str) -> bool:
    """Whether `path` is part of the page, which is no secret: it asks for the key itself."""
    return path == "/" or path.startswith("/page/")


def create_page_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    held = _load()

    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(held, "index.html", request)

    @router.get("/page/{name}")
    async def part(name: str, request: Request) -> Response:
        return _answer(held, name, request)

    return router


def _load() -> Mapping[str, bytes]:
    folder = files("openlora.node.api") / "page"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in TYPES}


def _answer(held: Mapping[str, bytes], name: str, request: Request) -> Response:
    if name not in held:
        raise HTTPException(404, "The page has no such part.")
    tag = f'"{sha256(held[name]).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(held[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)
