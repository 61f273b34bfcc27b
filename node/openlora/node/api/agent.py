"""The agent's own faces: every route on `agent.sock`, and for dashboards a port with the page.

None of them shows a prompt and, but for the stream of one job on the socket, none shows an answer; a private job's goes
to its client alone.
"""

import socket
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse

from openlora.contracts import JobFlag
from openlora.node.api.app import create_bare_app
from openlora.node.api.dashboard import STRUCTS, create_dashboard_router, create_session_router
from openlora.node.api.errors import install_error_handlers
from openlora.node.api.events import create_events_router
from openlora.node.api.keys import BrowserSessions, read_keys
from openlora.node.api.limits import Limits
from openlora.node.api.openapi import DescribedApi
from openlora.node.api.page import create_page_router, is_page
from openlora.node.api.server import Server, bind, is_loopback
from openlora.node.config import TelemetryConfig
from openlora.node.errors import ConfigError, JournalError, RequestError
from openlora.node.job import JobId
from openlora.node.journal import Journal
from openlora.node.progress import Progress, progress, until_known
from openlora.node.streams import JobStreams
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.feed import Feed


def create_agent_api(journal: Journal, streams: JobStreams, board: Board, feed: Feed) -> FastAPI:
    """Everything that the agent tells, for whoever may open its socket."""
    app = DescribedApi("OpenLoRA agent", "What a node is and does.", STRUCTS, secured=False)
    install_error_handlers(app, Limits().retry_after_s)
    app.include_router(create_dashboard_router(board))
    app.include_router(create_events_router(feed))
    app.include_router(_stream_router(journal, streams))
    return app


def create_dashboard_api(board: Board, feed: Feed, limits: Limits, keys: Collection[str] = ()) -> FastAPI:
    """The page and what it reads. Without `keys` it answers to local host names only; with them, to nobody without."""
    sessions = BrowserSessions()
    app = create_bare_app(limits, keys, sessions=sessions, public=is_page, structs=STRUCTS)
    app.include_router(create_dashboard_router(board))
    app.include_router(create_events_router(feed))
    app.include_router(create_session_router(sessions))
    app.include_router(create_page_router())
    return app


@dataclass(frozen=True, slots=True)
class DashboardPort:
    """Where the dashboard listens, and the keys that open it."""

    host: str
    port: int
    keys: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, config: TelemetryConfig) -> Self | None:
        """None where no port is configured. Raises ConfigError for one that others can reach without a key."""
        if not config.listen:
            return None
        keys = read_keys(Path(config.key_file), "telemetry.key_file") if config.key_file else ()
        host, _, port = config.listen.rpartition(":")
        host = host.strip("[]")
        if not port.isdigit() or not host:
            raise ConfigError(f"telemetry.listen {config.listen} must be host:port, as 127.0.0.1:9464")
        if not keys and not is_loopback(host):
            raise ConfigError(
                f"telemetry.listen {config.listen} can be reached from other machines: set telemetry.key_file"
            )
        return cls(host, int(port), keys)

    def bound(self) -> socket.socket:
        """Raises ConfigError for an address that is in use."""
        return bind(self.host, self.port, Limits(), "telemetry.listen")


async def serve_dashboard(board: Board, feed: Feed, sock: socket.socket, keys: Collection[str]) -> None:
    """Serves on a bound socket until cancelled."""
    limits = Limits()
    await Server().serve(create_dashboard_api(board, feed, limits, keys), sock, limits)


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


def _stream_router(journal: Journal, streams: JobStreams) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/jobs/{job_id}/stream", response_class=StreamingResponse)
    async def stream(job_id: int) -> StreamingResponse:
        """Server-sent events {"state", "text"} until this node is done with the job; `text` is what was added.

        A null `text` begins the answer anew: the engine was restarted. A job just submitted is waited for.
        """
        try:
            await until_known(journal, JobId(job_id))
        except JournalError as error:
            raise RequestError("unknown_job", f"{error}.", "job_id") from None
        if journal.job(JobId(job_id)).spec.flags & JobFlag.PRIVATE:
            raise RequestError("private_job", f"Job {job_id} is private: its client alone may watch it.", "job_id")
        steps = progress(journal, streams, JobId(job_id))
        return StreamingResponse(_server_sent(steps), media_type="text/event-stream")

    return router


async def _server_sent(steps: AsyncIterator[Progress]) -> AsyncIterator[bytes]:
    async for step in steps:
        yield b"data: " + msgspec.json.encode(step) + b"\n\n"
