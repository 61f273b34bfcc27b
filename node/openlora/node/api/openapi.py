"""/openapi.json as it really is: what routes answer, how they refuse, and what lets one in."""

from collections.abc import Collection
from importlib.metadata import version
from typing import Any, Final

import msgspec
from fastapi import FastAPI

from openlora.node.api.keys import COOKIE

REFERENCES: Final = "#/components/schemas/{name}"
REFUSALS: Final = {  # of every route
    "400": "The request is malformed, or asks for what is not served.",
    "401": "There is no key, or a wrong one.",
    "403": "The server is open to this machine alone, and was asked by another name.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "The server failed; its log says why.",
}


class ErrorBody(msgspec.Struct, frozen=True):
    """`code` is stable; `message` is a sentence for a person; `param` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, frozen=True):
    """Every refusal."""

    error: ErrorBody


class DescribedApi(FastAPI):
    """FastAPI that tells of msgspec structs too, and of what guard and error handlers answer. No page of its own."""

    def __init__(self, title: str, description: str, structs: Collection[type[msgspec.Struct]] = ()) -> None:
        super().__init__(
            title=title, description=description, version=version("openlora"), docs_url=None, redoc_url=None
        )
        self._structs: tuple[type[msgspec.Struct], ...] = (*structs, Error)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi(), self._structs)
        return self.openapi_schema


def answers(kind: type[msgspec.Struct], *missing: str) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: 200 with `kind`, and 404 for what `missing` says."""
    found: dict[int | str, dict[str, Any]] = {200: _content(kind.__name__, (kind.__doc__ or "").partition("\n")[0])}
    if missing:
        found[404] = _content("Error", " ".join(missing))
    return found


def _content(name: str, told: str, media_type: str = "application/json") -> dict[str, Any]:
    return {"description": told, "content": {media_type: {"schema": {"$ref": REFERENCES.format(name=name)}}}}


def _complete(document: dict[str, Any], structs: Collection[type[msgspec.Struct]]) -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(structs, ref_template=REFERENCES)
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted({**components.get("schemas", {}), **schemas}.items()))
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which nobody ever gets
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A key of the server's key file."},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What a browser got for a key."},
    }
    document["security"] = [{"key": []}, {"session": []}, {}]  # {}: on loopback without a key file
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for status, told in REFUSALS.items():
                operation["responses"].setdefault(status, _content("Error", told))
    return document
