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
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "The queue is full; Retry-After says when to come back.",
    "431": "The headers are too large.",
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

    def __init__(
        self, title: str, description: str, structs: Collection[type[msgspec.Struct]] = (), *, secured: bool = True
    ) -> None:
        """`secured`: there may be keys."""
        super().__init__(
            title=title, description=description, version=version("openlora"), docs_url=None, redoc_url=None
        )
        self._secured = secured
        self._structs: tuple[type[msgspec.Struct], ...] = (*structs, Error)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi(), self._structs, self._secured)
        return self.openapi_schema


Responses = dict[int | str, dict[str, Any]]


def answers(kind: type[msgspec.Struct], *absent: str) -> Responses:
    """A route's `responses`: 200 with `kind`, and 404 for what `absent` says."""
    told = (kind.__doc__ or "").partition("\n")[0]
    return {200: _content(kind.__name__, told), **missing(*absent)}


def missing(*absent: str) -> Responses:
    """A route's 404, where `absent` says when."""
    return {404: _content("Error", " ".join(absent))} if absent else {}


def _content(name: str, told: str, media_type: str = "application/json") -> dict[str, Any]:
    return {"description": told, "content": {media_type: {"schema": {"$ref": REFERENCES.format(name=name)}}}}


def _complete(document: dict[str, Any], structs: Collection[type[msgspec.Struct]], secured: bool) -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(structs, ref_template=REFERENCES)
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted({**components.get("schemas", {}), **schemas}.items()))
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which nobody ever gets
        components["schemas"].pop(name, None)
    if secured:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "A key of the server's key file."},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "A browser's, for a key."},
        }
        document["security"] = [{"key": []}, {"session": []}, {}]  # {}: on loopback without a key file
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            for status, told in REFUSALS.items():
                if secured or status not in ("401", "403"):
                    operation["responses"].setdefault(status, _content("Error", told))
    return document
