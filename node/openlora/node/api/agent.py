"""The agent's own routes, on `agent.sock`: what this node is and does.

None of them shows a prompt and, but for the stream of one job, none shows an answer.
"""

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from openlora.node.api.app import create_bare_app
from openlora.node.api.limits import Limits
from openlora.node.api.server import Server, bind, is_loopback
from openlora.node.errors import ConfigError, JournalError
from openlora.node.job import Job, JobId
from openlora.node.journal import Journal
from openlora.node.network.table import node_view
from openlora.node.progress import Progress, progress, until_known
from openlora.node.streams import JobStreams
from openlora.node.telemetry.metrics import CONTENT_TYPE, metrics
from openlora.node.telemetry.snapshot import Snapshot
from openlora.p2p.presence.record import Presence

Observe = Callable[[], Awaitable[Snapshot]]
Nodes = Callable[[], Sequence[Presence]]


def create_agent_api(journal: Journal, streams: JobStreams, observe: Observe, nodes: Nodes) -> FastAPI:
    """The application; `observe` is the one source of /v1/state, `nodes`, this one included, of /v1/network."""
    app = FastAPI(title="OpenLoRA agent", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.add_exception_handler(JournalError, _not_found)
    app.include_router(_router(journal, streams, nodes))
    app.include_router(_telemetry_router(observe))
    return app


def create_telemetry_api(observe: Observe, limits: Limits) -> FastAPI:
    """/v1/state, /v1/earnings and /metrics alone, for a loopback port that answers to local host names only."""
    app = create_bare_app(limits, keys=())
    app.include_router(_telemetry_router(observe))
    return app


async def serve_loopback(app: FastAPI, address: str, limits: Limits) -> None:
    """Serves on `host:port` until cancelled. Raises ConfigError for one that others could reach, or that is in use."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdigit() or not is_loopback(host):
        raise ConfigError(f"telemetry.listen {address} must be host:port of this machine alone, as 127.0.0.1:9464")
    with bind(host, int(port), limits) as sock:
        await Server().serve(app, sock, limits)


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


def _router(journal: Journal, streams: JobStreams, nodes: Nodes) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/network")
    async def network() -> Mapping[str, Any]:
        """The nodes whose presence is alive, this one included."""
        return {"nodes": [node_view(record) for record in nodes()]}

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
        await until_known(journal, JobId(job_id))
        steps = progress(journal, streams, JobId(job_id))
        return StreamingResponse(_server_sent(steps), media_type="text/event-stream")

    return router


def _telemetry_router(observe: Observe) -> APIRouter:
    """What dashboards read: nothing in it is a prompt, an answer or a secret."""
    router = APIRouter()

    @router.get("/v1/state")
    async def state() -> Response:
        """The node at this moment, as `openlora.node.telemetry.snapshot` describes it."""
        return _json(await observe())

    @router.get("/v1/earnings")
    async def earnings() -> Response:
        """What the chain has paid this node's operator, by role."""
        return _json((await observe()).earnings)

    @router.get("/metrics")
    async def page() -> Response:
        """Prometheus."""
        return Response(metrics(await observe(), time.time()), media_type=CONTENT_TYPE)

    return router


def _json(document: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")


async def _server_sent(steps: AsyncIterator[Progress]) -> AsyncIterator[bytes]:
    async for step in steps:
        yield b"data: " + msgspec.json.encode(step) + b"\n\n"


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
