"""The CLI's way to the agent: HTTP over `agent.sock`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from openlora.node.errors import AgentUnreachable, RequestError
from openlora.node.job import JobState

TIMEOUT_S = 10.0
POLL_S = 0.1
ANSWERING = frozenset({JobState.CLAIMED, JobState.COMMITTING, JobState.COMMITTED})
ENDED = frozenset(set(JobState) - {JobState.SEEN, JobState.CLAIMING, JobState.CLAIMED, JobState.COMMITTING})


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


def watch(socket: Path, job_id: int) -> Iterator[tuple[str, str]]:
    """(state, answer so far) whenever either changes, from now until this node is done with the job.

    An answer that a restarted engine began anew begins anew here. Raises AgentUnreachable.
    """
    seen = ("", "")
    while True:
        state = _state_of(socket, job_id)
        if state in ANSWERING:
            text = ""
            for line in _stream(socket, f"/v1/jobs/{job_id}/stream"):
                if line != "[DONE]":
                    text += json.loads(line)["text"]
                    yield state, text
            seen = (state, text or seen[1])
            state = _state_of(socket, job_id)
        if (state, seen[1]) != seen:
            seen = (state, seen[1])
            yield seen
        if state in ENDED:
            return
        time.sleep(POLL_S)


def _state_of(socket: Path, job_id: int) -> str:
    try:
        return str(get(socket, f"/v1/jobs/{job_id}")["state"])
    except RequestError:  # the follower has not seen its block yet
        return "unknown"


def _stream(socket: Path, path: str) -> Iterator[str]:
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
