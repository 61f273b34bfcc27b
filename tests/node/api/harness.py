"""A real HTTP server over the fake engine, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from openlora.node.api.app import create_app
from openlora.node.api.catalog import Catalog, ServedAdapter
from openlora.node.api.limits import Limits
from openlora.node.api.server import Server, bind
from openlora.node.api.service import TextService
from openlora.node.engine.client import EngineClient, in_process_engine
from openlora.node.tasks import running
from tests.node.fake_engine import FakeEngine
from tests.node.tiny_model import tiny_text, write_adapter

BASE = "tiny"
ADAPTERS = ("poet", "pirate")


@dataclass(frozen=True, slots=True)
class Harness:
    """`http` speaks raw HTTP, `openai` is the official client."""

    url: str
    engine: EngineClient
    service: TextService
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The JSON of every event, and "[DONE]"."""
        response = await self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.text.split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]

    async def settled(self) -> bool:
        """Nothing runs and nothing is held; waits for cancellations that are on their way."""
        async with asyncio.timeout(5):
            while (await self.engine.status()).running or self.service.admission.requests:
                pass
        return (self.service.admission.requests, self.service.admission.tokens) == (0, 0)


@asynccontextmanager
async def serving(
    directory: Path,
    engine: FakeEngine | EngineClient,
    *,
    limits: Limits | None = None,
    keys: Collection[str] = (),
    adapter_loading: bool = False,
) -> AsyncIterator[Harness]:
    """Serves `engine` with two adapters until the block ends."""
    if isinstance(engine, FakeEngine):
        async with (
            in_process_engine(engine) as client,
            serving(directory, client, limits=limits, keys=keys, adapter_loading=adapter_loading) as harness,
        ):
            yield harness
        return
    limits = limits or Limits()
    catalog = Catalog(BASE, str(directory))
    for name in ADAPTERS:
        path = str(write_adapter(directory / name))
        await engine.load_adapter(name, path)
        catalog.add(ServedAdapter(name, path))
    service = TextService(engine, tiny_text(directory), catalog, limits)
    app = create_app(service, keys=keys, adapter_loading=adapter_loading)
    server = Server()
    with bind("127.0.0.1", 0, limits) as sock:
        sock.listen()  # so that a connection made before uvicorn is up waits
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        key = next(iter(keys), "unused")
        async with (
            running(server.serve(app, sock, limits), "server") as task,
            httpx.AsyncClient(base_url=url, timeout=20, verify=False, trust_env=False) as http,
            DefaultAsyncHttpxClient(verify=False, trust_env=False) as plain,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20, http_client=plain) as openai,
        ):
            await http.get("/health")
            yield Harness(url, engine, service, http, openai)
            server.stop()
            await task
