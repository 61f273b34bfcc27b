"""The CLI's way to the agent: HTTP over `agent.sock`."""

import socket as socket_module
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from openlora.node.database import lock_holder
from openlora.node.errors import AgentUnreachable, RequestError

TIMEOUT_S = 10.0


def get(socket: Path, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """A JSON document of the agent's. Raises AgentUnreachable, and RequestError for what it refuses."""
    return send(socket, "GET", path, timeout_s=timeout_s)


def send(socket: Path, method: str, path: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Asks the agent for something, and returns the JSON document that it answers with. Raises as `get`."""
    with _open(socket) as http:
        try:
            answer = http.request(method, path, timeout=timeout_s)
        except httpx.TransportError:
            raise _unreachable(socket) from None
    _check(answer)
    return answer.json()


def watch(socket: Path, job_id: int) -> Iterator[tuple[str, str]]:
    """(state, answer so far) whenever either changes, from now until this node is done with the job.

    An answer that a restarted engine began anew begins anew here. Raises AgentUnreachable, and RequestError for a job
    that the node has never seen.
    """
    text = ""
    for line in _stream(socket, f"/v1/jobs/{job_id}/stream"):
        event = msgspec.json.decode(line)
        text = "" if event["text"] is None else text + event["text"]
        yield event["state"], text


def _stream(socket: Path, path: str) -> Iterator[bytes]:
    """The data of a server-sent event stream, until it ends."""
    with _open(socket) as http:
        try:
            with http.stream("GET", path, timeout=None) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        yield line.removeprefix("data: ").encode()
        except httpx.TransportError:
            raise _unreachable(socket) from None


def _open(socket: Path) -> httpx.Client:
    """Raises AgentUnreachable. Tried here first: httpcore leaves its own socket open when a connection is refused."""
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        try:
            probe.connect(str(socket))
        except PermissionError:
            raise AgentUnreachable(f"{socket} is another user's; ask as the one that runs the node") from None
        except OSError:
            raise _unreachable(socket) from None
    transport = httpx.HTTPTransport(uds=str(socket), verify=False)  # a file, not a network
    return httpx.Client(transport=transport, base_url="http://agent", timeout=TIMEOUT_S, trust_env=False)


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        error = answer.json()["error"]
    except ValueError:  # not of our routes' making
        raise AgentUnreachable(f"the agent answered {answer.status_code}; its log says why") from None
    raise RequestError(str(error["code"]), str(error["message"]))


def _unreachable(socket: Path) -> AgentUnreachable:
    if (holder := lock_holder(socket.with_name("journal.lock"))) is not None:
        return AgentUnreachable(
            f"the agent (process {holder}) does not answer on {socket}; if it has just been started, ask again in a"
            " minute, otherwise read its log"
        )
    return AgentUnreachable(f"no agent listens on {socket}; start one with `openlora run`")
