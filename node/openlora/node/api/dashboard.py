"""What dashboards read over HTTP: nothing in it is a prompt, an answer or a secret."""

import time

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from openlora.node.api.guard import session_token
from openlora.node.api.keys import COOKIE, SESSION_S, BrowserSessions
from openlora.node.api.openapi import answers
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.history import HistoryView
from openlora.node.telemetry.metrics import CONTENT_TYPE, metrics
from openlora.node.telemetry.snapshot import Snapshot
from openlora.node.telemetry.views import EarningsOverTime, JobDetail, JobPage, NodesView, ReceiptView

STRUCTS = (Snapshot, EarningsOverTime, HistoryView, JobDetail, JobPage, NodesView, ReceiptView)
MAX_JOB_ID = 2**63 - 1
UNSEEN = "The node has not seen this job."


def create_dashboard_router(board: Board) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/state", responses=answers(Snapshot))
    async def state() -> Response:
        """The node at this moment."""
        return _json(await board.observe())

    @router.get("/v1/earnings", responses=answers(EarningsOverTime))
    async def earnings(
        bucket_s: int = Query(3600, ge=60, le=31 * 86_400), buckets: int = Query(24, ge=1, le=500)
    ) -> Response:
        """What the chain has paid this node's operator, by role: in all, and in each of the last spans of time."""
        return _json(await board.earnings(bucket_s, buckets))

    @router.get("/v1/history", responses=answers(HistoryView))
    async def history() -> Response:
        """The last half hour of machine and engine."""
        return _json(board.history.view())

    @router.get("/v1/network", responses=answers(NodesView))
    async def network() -> Response:
        """The nodes whose presence is alive, this one included."""
        return _json(board.network())

    @router.get("/v1/jobs", responses=answers(JobPage))
    async def jobs(
        limit: int = Query(100, ge=1, le=1000),
        before: int | None = Query(None, ge=1, le=MAX_JOB_ID, description="`next_before` of the page before"),
        state: JobState | None = None,
        skip_code: SkipCode | None = None,
    ) -> Response:
        """The jobs of the journal, newest first, a page at a time."""
        return _json(board.jobs(limit, before, state, skip_code))

    @router.get("/v1/jobs/{job_id}", responses=answers(JobDetail, UNSEEN))
    async def job(job_id: int = Path(ge=0, le=MAX_JOB_ID)) -> Response:
        """One job with its history."""
        return _json(board.job(JobId(job_id)))

    @router.get("/v1/jobs/{job_id}/receipt", responses=answers(ReceiptView, UNSEEN, "It has signed no receipt for it."))
    async def receipt(job_id: int = Path(ge=0, le=MAX_JOB_ID)) -> Response:
        """What this node signed for a job, and who got which wei of its fee."""
        return _json(await board.receipt(JobId(job_id)))

    @router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
    async def page() -> Response:
        """Prometheus."""
        return Response(metrics(await board.observe(), time.time()), media_type=CONTENT_TYPE)

    return router


def create_session_router(sessions: BrowserSessions) -> APIRouter:
    """A browser's login: a page cannot add a key to a WebSocket, so it gets a cookie for it, which no script reads."""
    router = APIRouter()

    @router.post("/v1/session", status_code=204)
    async def login(request: Request) -> Response:
        """Begins a browser's session of 12 hours, for the key in `Authorization`: the guard has checked it."""
        answer = Response(status_code=204)
        secure = request.headers.get("origin", "").startswith("https:")
        answer.set_cookie(
            COOKIE, sessions.begin(), max_age=SESSION_S, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    @router.delete("/v1/session", status_code=204)
    async def logout(request: Request) -> Response:
        """Ends it."""
        sessions.end(session_token(request.headers.get("cookie", "").encode("latin-1")))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    return router


def _json(document: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
