"""The agent's own routes, on `agent.sock`: what this node is and does.

None of them shows a prompt and, but for the stream of one job, none shows an answer.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from openlora.node.api.limits import Limits
from openlora.node.api.server import Server
from openlora.node.errors import JournalError
from openlora.node.job import LIVE, Job, JobId, JobState
from openlora.node.journal import Journal
from openlora.node.streams import JobStreams

POLL_S = 0.1
UNKNOWN_JOB_WAIT_S = 10.0  # a submission is mined before the follower has read its block
ENDED = frozenset(JobState) - LIVE - {JobState.SEEN} | {JobState.COMMITTED}

Snapshot = Callable[[], Awaitable[Mapping[str, Any]]]


def create_agent_api(journal: Journal, streams: JobStreams, snapshot: Snapshot) -> FastAPI:
    """The application; `snapshot` is the one source of /v1/state."""
    app = FastAPI(title="OpenLoRA agent", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.add_exception_handler(JournalError, _not_found)
    app.include_router(_router(journal, streams, snapshot))
    return app


async def serve_unix(app: FastAPI, path: Path) -> None:
    """Serves on a Unix socket that its owner alone may use, until cancelled.

    The caller holds the journal's lock, so a socket that is there already is a dead agent's.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o600)
        try:
            await Server().serve(app, sock, Limits())
        finally:
            path.unlink(missing_ok=True)


def _router(journal: Journal, streams: JobStreams, snapshot: Snapshot) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/state")
    async def state() -> Mapping[str, Any]:
        return await snapshot()

    @router.get("/jobs")
    async def jobs(limit: int = Query(100, ge=1, le=1000)) -> list[Mapping[str, Any]]:
        """The newest jobs first."""
        return [_job_view(job) for job in journal.jobs(limit=limit, newest_first=True)]

    @router.get("/jobs/{job_id}")
    async def job(job_id: int) -> Mapping[str, Any]:
        return _job_view(journal.job(JobId(job_id)))

    @router.get("/jobs/{job_id}/stream")
    async def stream(job_id: int) -> StreamingResponse:
        """Server-sent events {"state", "text"} until this node is done with the job; `text` is what was added.

        A null `text` begins the answer anew: the engine was restarted. A job just submitted is waited for.
        """
        await _until_known(journal, JobId(job_id))
        return StreamingResponse(_events(journal, streams, JobId(job_id)), media_type="text/event-stream")

    return router


async def _until_known(journal: Journal, job_id: JobId) -> None:
    """Returns once the journal has the job; raises JournalError if it has not after some blocks' time."""
    for _ in range(int(UNKNOWN_JOB_WAIT_S / POLL_S)):
        try:
            journal.job(job_id)
        except JournalError:
            await asyncio.sleep(POLL_S)
        else:
            return
    journal.job(job_id)


async def _events(journal: Journal, streams: JobStreams, job_id: JobId) -> AsyncIterator[bytes]:
    shown, run = "", None
    while True:
        state = journal.job(job_id).state
        if (current := streams.run_of(job_id)) is not None and current != run:
            if run is not None:
                yield _event(state, None)
            run = current
            async for text in streams.read(job_id):
                yield _event(journal.job(job_id).state, text)
        elif state != shown:
            shown = state
            yield _event(state, "")
        elif state in ENDED:
            return
        else:
            await asyncio.sleep(POLL_S)


def _event(state: JobState, text: str | None) -> bytes:
    return b"data: " + msgspec.json.encode({"state": state, "text": text}) + b"\n\n"


def _job_view(job: Job) -> Mapping[str, Any]:
    return {
        "job_id": job.id,
        "state": job.state,
        "skip_code": job.skip,
        "reason": job.reason,
        "recipe_id": job.spec.recipe_id,
        "client": job.spec.client,
        "claim_block": job.claim.number if job.claim else None,
        "changed_at": job.changed_at,
    }


async def _not_found(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": {"code": "unknown_job", "message": str(error)}}, status_code=404)
