"""The CLI's way to the agent: HTTP over `agent.sock`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from openlora.node.errors import AgentUnreachable, RequestError

TIMEOUT_S = 10.0


def get(socket: Path, path: str) -> dict[str, Any]:
    """A JSON document of the agent's. Raises AgentUnreachable, and RequestError for what it refuses."""
    with _open(socket) as http:
        try:
            answer = http.get(path)
        except httpx.TransportError:
            raise _unreachable(socket) from None
    _check(answer)
    document: dict[str, Any] = answer.json()
    return document


def stream(socket: Path, path: str) -> Iterator[str]:
    """The data lines of a server-sent event stream, until it ends."""
    with _open(socket) as http:
        try:
            with http.stream("GET", path, timeout=None) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        yield line.removeprefix("data: ")
        except httpx.TransportError:
            raise _unreachable(socket) from None


def _open(socket: Path) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(socket))
    return httpx.Client(transport=transport, base_url="http://agent", timeout=TIMEOUT_S)


def _check(answer: httpx.Response) -> None:
    if answer.is_error:
        error = answer.json()["error"]
        raise RequestError(str(error["code"]), str(error["message"]))


def _unreachable(socket: Path) -> AgentUnreachable:
    return AgentUnreachable(f"no agent listens on {socket}; start one with `openlora run`")
