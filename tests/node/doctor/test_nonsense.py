"""Servers that answer nonsense are faults that the doctor finds, and no end of the examination."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from openlora.node.config import ChainConfig
from openlora.node.doctor.network import _kubo_fault
from openlora.node.doctor.rpc import look_at_endpoints

BLOCK = {"number": "0x7", "hash": "0x" + "11" * 32, "parentHash": "0x" + "22" * 32, "timestamp": "0x7"}
DEEP = "[" * 100_000


@asynccontextmanager
async def server(answer: Any) -> AsyncIterator[TestServer]:
    """Says this, as JSON, or as it is where it is text; of a chain's id, the truth."""

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        if b"eth_chainId" in body:
            return web.json_response({"result": "0x1"})
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer))

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    async with TestServer(app) as running:
        yield running


@pytest.mark.parametrize(
    "answer",
    [
        {"result": BLOCK | {"timestamp": "0x" + "f" * 300}},
        {"result": BLOCK | {"number": "0x" + "f" * 5_000}},
        {"result": "latest"},
        [],
        7,
        DEEP,
    ],
    ids=["a time", "a number", "text", "a list", "7", "deep"],
)
async def test_an_rpc(answer: Any):
    async with server(answer) as running:
        config = ChainConfig(chain_id=1, rpc_urls=(str(running.make_url("/")),), deployment=Path("deployment.json"))
        (endpoint,) = await look_at_endpoints(config, time.time)
    assert (endpoint.chain_id, endpoint.fault) == (None, "its answer is no JSON-RPC of a chain")


@pytest.mark.parametrize("answer", [7, [], None, DEEP], ids=["7", "a list", "null", "deep"])
async def test_a_kubo(answer: Any):
    async with server(answer) as running:
        assert await _kubo_fault(f"/ip4/127.0.0.1/tcp/{running.port}") == "what answers there is no Kubo"
