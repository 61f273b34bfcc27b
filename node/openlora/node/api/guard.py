"""What every request passes before any route: who asks, from where, and how much they send."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openlora.node.api.errors import error_body
from openlora.node.api.keys import COOKIE, BrowserSessions, KeyRing
from openlora.node.api.limits import Limits

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware. With `keys`, every route but the `public` ones wants `Authorization: Bearer <key>`, or the
    cookie of one of `sessions`, which a browser got for a key.

    Whose request it is stands in `scope["state"]["tenant"]`: a digest of the key, "local" without keys.

    Without keys only `host_names` are answered: a web page that has its own name resolve to 127.0.0.1 (DNS rebinding)
    would otherwise reach a server that is open on loopback from a browser on the same machine. A WebSocket that a page
    of another origin opens is refused: browsers send it the cookie, and let that page read it.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: Collection[str],
        host_names: Collection[str],
        sessions: BrowserSessions | None = None,
        public: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app, self._limits = app, limits
        self._keys, self._sessions, self._public = KeyRing(keys), sessions, public
        self._host_names = frozenset(host_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            if scope["type"] == "http":
                # HEAD is GET, of whose answer the server sends the headers alone.
                get = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(get, self._bounded(receive), send)
            else:
                await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._limits.max_header_bytes:
            return _refuse(431, f"The request's headers exceed {self._limits.max_header_bytes} bytes.")
        given = dict(headers)  # of a repeated header the last counts
        if self._keys:
            if not self._public(scope["path"]) and not self._may(given):
                return _refuse(401, "Wrong or missing API key: send 'Authorization: Bearer <key>'.", "invalid_api_key")
        elif _host_name(given.get(b"host", b"")) not in self._host_names:
            return _refuse(403, "This server answers to local host names only; start it with --api-key-file.")
        if scope["type"] == "websocket" and not _same_origin(given):
            return _refuse(403, "A page of another origin may not listen here.")
        if (encoding := given.get(b"content-encoding", b"identity")).lower() != b"identity":
            name = encoding.decode("latin-1")[:32]
            return _refuse(415, f"Content-Encoding {name} is not supported: send the body as it is.")
        if (declared := _content_length(given)) is not None and declared > self._limits.max_body_bytes:
            return _refuse(413, _too_large(self._limits))
        return None

    def _may(self, given: Mapping[bytes, bytes]) -> bool:
        authorization = given.get(b"authorization", b"")
        if authorization[:7].lower() == b"bearer " and self._keys.has(_token(authorization)):
            return True
        return self._sessions is not None and self._sessions.has(session_token(given.get(b"cookie", b"")))

    def _tenant(self, scope: Scope) -> str:
        if not self._keys:
            return "local"
        return "key:" + sha256(_token(dict(scope["headers"]).get(b"authorization", b""))).hexdigest()[:32]

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


def session_token(cookies: bytes) -> str:
    """The browser session's token among the cookies that were sent; empty without one."""
    for cookie in cookies.decode("latin-1").split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _same_origin(given: Mapping[bytes, bytes]) -> bool:
    """Only browsers send an origin, and always; "null" is a page that has none."""
    origin = given.get(b"origin")
    return origin is None or origin.lower().partition(b"://")[2] == given.get(b"host", b"").lower()


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def _too_large(limits: Limits) -> str:
    return f"The request's body exceeds {limits.max_body_bytes} bytes."
