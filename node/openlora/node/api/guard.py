"""What every request passes before any route: who asks, from where, and how much he sends."""

import asyncio
import hmac
from collections.abc import Collection
from hashlib import sha256

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openlora.node.api.errors import error_body
from openlora.node.api.limits import Limits

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware. With `keys`, every route wants `Authorization: Bearer <key>`, compared in constant time.

    Whose request it is stands in `scope["state"]["tenant"]`: a digest of the key, "local" without keys.

    Without keys only `host_names` are answered: a web page that has its own name resolve to 127.0.0.1 (DNS rebinding)
    would otherwise reach a server that is open on loopback from a browser on the same machine.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: Collection[str], host_names: Collection[str]) -> None:
        self._app, self._limits = app, limits
        self._key_digests = [sha256(key.encode()).digest() for key in keys]
        self._host_names = frozenset(host_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            await self._app(scope, self._bounded(receive) if scope["type"] == "http" else receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._limits.max_header_bytes:
            return _refuse(431, f"The request's headers exceed {self._limits.max_header_bytes} bytes.")
        given = dict(headers)  # of a repeated header the last counts
        if self._key_digests:
            if not self._is_key(given.get(b"authorization", b"")):
                return _refuse(401, "Wrong or missing API key: send 'Authorization: Bearer <key>'.", "invalid_api_key")
        elif _host_name(given.get(b"host", b"")) not in self._host_names:
            return _refuse(403, "This server answers to local host names only; start it with --api-key-file.")
        if (declared := _content_length(given)) is not None and declared > self._limits.max_body_bytes:
            return _refuse(413, _too_large(self._limits))
        return None

    def _is_key(self, authorization: bytes) -> bool:
        digest = sha256(_token(authorization)).digest()
        # Every key is compared, so that time does not tell which one was nearly right.
        found = [hmac.compare_digest(digest, known) for known in self._key_digests]
        return authorization[:7].lower() == b"bearer " and any(found)

    def _tenant(self, scope: Scope) -> str:
        if not self._key_digests:
            return "local"
        return "key:" + sha256(_token(dict(scope["headers"])[b"authorization"])).hexdigest()[:32]

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` with a limit on the body's bytes and time, for bodies that declare no length or a wrong one."""
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The request's body did not arrive in time.") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limits.max_body_bytes:
                raise HTTPException(413, _too_large(self._limits))
            return message

        return bounded


def _refuse(status: int, message: str, code: str | None = None) -> JSONResponse:
    headers = {"Connection": "close"} | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
    return JSONResponse(error_body(message, "invalid_request_error", None, code), status, headers=headers)


def _token(authorization: bytes) -> bytes:
    return authorization.partition(b" ")[2].strip()


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def _too_large(limits: Limits) -> str:
    return f"The request's body exceeds {limits.max_body_bytes} bytes."
