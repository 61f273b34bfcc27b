"""Who may ask, how much he may send, and what happens when he sends nothing, too much, or leaves."""

import asyncio
import contextlib
import gzip
import json
import random
import socket
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from starlette.types import Message

from openlora.node.api.limits import Admission, Limits
from openlora.node.api.sse import EventStream, SendEvents
from openlora.node.engine.supervisor import EngineOptions, supervised_engine
from openlora.node.errors import Overloaded
from tests.node import fake_engine
from tests.node.api.harness import BASE, Harness, serving
from tests.node.fake_engine import CRASH, FakeEngine

KEY = "a-key-of-some-length"
ROUTES = ("/health", "/v1/models", "/v1/models/tiny", "/openapi.json", "/v1/completions", "/nowhere")


async def test_a_key_is_asked_on_every_route(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(), keys=[KEY, "another-key-as-long"]) as server:
        for route in ROUTES:
            for header in (
                {},
                {"Authorization": f"Bearer {KEY}x"},
                {"Authorization": KEY},
                {"Authorization": "Bearer"},
            ):
                response = await server.http.get(route, headers=header)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
                assert KEY not in response.text
        for key in (KEY, "another-key-as-long"):
            assert (await server.http.get("/health", headers={"Authorization": f"Bearer {key}"})).status_code == 200
        assert (await server.openai.completions.create(model=BASE, prompt="a")).choices
        wrong = server.openai.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            await wrong.completions.create(model=BASE, prompt="a")


async def test_a_request_runs_as_its_keys_tenant(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with serving(tmp_path, engine, keys=[KEY, "another-key-as-long"]) as server:
        for key in (KEY, KEY, "another-key-as-long"):
            await server.openai.with_options(api_key=key).completions.create(model=BASE, prompt="a")
    async with serving(tmp_path, engine) as server:
        await server.openai.completions.create(model=BASE, prompt="a")
    mine, again, other, local = engine.tenants
    assert mine == again != other
    assert local == "local"
    assert KEY not in mine


async def test_without_a_key_only_local_names_are_answered(tmp_path: Path) -> None:
    expected = dict.fromkeys(["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]", ""], 403)
    expected |= dict.fromkeys(["localhost", "LOCALHOST:9", "127.0.0.1:80", "[::1]:80"], 200)
    async with serving(tmp_path, FakeEngine()) as server:
        found = {host: (await server.http.get("/health", headers={"Host": host})).status_code for host in expected}
    assert found == expected


async def test_a_body_does_not_wait_for_the_acknowledgement_of_its_headers(tmp_path: Path) -> None:
    """It would for 40 ms, on every connection that is used again."""
    async with serving(tmp_path, FakeEngine()) as server:
        took_s = sorted([(await server.http.get("/health")).elapsed.total_seconds() for _ in range(9)])
    assert took_s[4] < 0.03


async def test_oversized_headers_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        for headers in ({"X": "a" * 17_000}, {f"X-{i}": "a" * 100 for i in range(200)}):
            assert (await server.http.get("/health", headers=headers)).status_code == 431


async def test_headers_that_never_end_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(17):
            writer.write(b"a" * 1000)
            await writer.drain()
            await server.http.get("/health")  # so that the server reads in pieces
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_oversized_bodies_are_refused_whether_or_not_they_say_so(tmp_path: Path) -> None:
    async def chunks() -> object:
        for _ in range(20):
            yield b" " * 100

    async with serving(tmp_path, FakeEngine(), limits=Limits(max_body_bytes=1000)) as server:
        kind = {"Content-Type": "application/json"}
        declared = await server.http.post("/v1/completions", content=b" " * 1001, headers=kind)
        chunked = await server.http.post("/v1/completions", content=chunks(), headers=kind)  # type: ignore[arg-type]
        fits = await server.post("/v1/completions", {"model": BASE, "prompt": "a"})
    assert (declared.status_code, chunked.status_code, fits.status_code) == (413, 413, 200)
    assert "1000 bytes" in declared.json()["error"]["message"]


async def test_a_body_that_does_not_arrive_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(), limits=Limits(body_timeout_s=0.05)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 10\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"])
async def test_a_head_that_does_not_arrive_is_not_waited_for(tmp_path: Path, said: bytes) -> None:
    async with serving(tmp_path, FakeEngine(), limits=Limits(head_timeout_s=0.05, keep_alive_s=0)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()


async def test_a_connection_s_later_heads_have_a_limit_too_and_bodies_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(), limits=Limits(head_timeout_s=0.1)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        request = raw_post(json.dumps({"model": BASE, "prompt": "a"}))
        for piece in (request[:-1], request[-1:]):
            writer.write(piece)
            await asyncio.sleep(0.3)
        assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.3)  # between two requests there is no head to wait for
        writer.write(request[:9])
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_connection_is_kept_for_longer_than_clients_keep_it(tmp_path: Path) -> None:
    """httpx, and the openai client on it, keep one for 5 s: a server that closes it just then loses their request."""
    async with serving(tmp_path, FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for wait_s in (0, 5.5):
            await asyncio.sleep(wait_s)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_compressed_body_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        body = gzip.compress(json.dumps({"model": BASE, "prompt": "a"}).encode())
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = await server.http.post("/v1/completions", content=body, headers=headers)
        plain = await server.post("/v1/completions", {"model": BASE, "prompt": "a"}, **{"Content-Encoding": "identity"})
    assert (response.status_code, plain.status_code) == (415, 200)
    assert response.json()["error"]["message"] == "Content-Encoding gzip is not supported: send the body as it is."


async def test_head_has_get_s_headers_and_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        for route, status in (("/health", 200), ("/v1/models", 200), ("/nowhere", 404), ("/v1/completions", 405)):
            get, head = await server.http.get(route), await server.http.head(route)
            assert (get.status_code, head.status_code, head.content) == (status, status, b"")
            assert head.headers["content-length"] == get.headers["content-length"]
        assert (await server.http.get("/health")).json() == {"status": "ok"}  # on the same connection


# ---- the queue ----


def test_admission_counts_requests_and_tokens() -> None:
    admission = Admission(replace(Limits(), max_requests=2, max_tokens=100))
    with admission.hold("a", requests=5, tokens=500):  # more than the whole queue, but the queue was empty
        with pytest.raises(Overloaded), admission.hold("a", requests=1):
            pass
        with pytest.raises(Overloaded), admission.hold("b", tokens=1):
            pass
    with admission.hold("a", requests=1, tokens=60), admission.hold("b", requests=1, tokens=40):
        assert (admission.requests, admission.tokens) == (2, 100)
    assert (admission.requests, admission.tokens) == (0, 0)


def test_a_tenant_may_hold_what_remains_free() -> None:
    admission = Admission(replace(Limits(), max_requests=8, max_tokens=1000))
    with contextlib.ExitStack() as held:
        for tenant, granted in (("flood", 4), ("second", 2), ("third", 1)):
            for _ in range(granted):
                held.enter_context(admission.hold(tenant, requests=1))
            for full in ("flood", tenant):
                with pytest.raises(Overloaded), admission.hold(full, requests=1):
                    pass
        held.enter_context(admission.hold("flood", tokens=500))
        with pytest.raises(Overloaded), admission.hold("flood", tokens=1):
            pass
        with admission.hold("second", tokens=500):
            assert admission.tokens == 1000


@pytest.mark.parametrize("limits", [Limits(max_requests=6), Limits(max_tokens=6 * 101)])
async def test_a_full_queue_says_when_to_come_back(tmp_path: Path, limits: Limits) -> None:
    engine = FakeEngine()
    async with serving(tmp_path, engine, limits=limits) as server:
        engine.gate.clear()
        body = {"model": BASE, "prompt": "a", "max_tokens": 100}
        waiting = [asyncio.create_task(server.post("/v1/completions", body)) for _ in range(3)]
        async with asyncio.timeout(5):
            while server.service.admission.tokens < 303:
                await server.engine.status()
        for stream in (False, True):
            refused = await server.post("/v1/completions", {**body, "stream": stream})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert refused.elapsed.total_seconds() < 1
        engine.gate.set()
        await server.engine.status()  # wakes the engine, which slept at its gate
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3
        assert (await server.post("/v1/completions", body)).status_code == 200


async def test_the_engine_s_own_full_queue_is_429_too(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(max_waiting=0)) as server:
        with pytest.raises(openai.RateLimitError):
            await server.openai.completions.create(model=BASE, prompt="a", stream=True)


# ---- those who leave ----


def raw_post(body: str) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def leave_early(server: Harness, seed: int) -> None:
    """Read a random number of bytes of a long answer, then close the connection."""
    choose = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stream = choose.random() < 0.7
    body = json.dumps({"model": BASE, "prompt": str(seed), "max_tokens": 400, "n": 2, "stream": stream})
    writer.write(raw_post(body))
    if stream:
        await reader.read(choose.randrange(1, 3000))
    if choose.random() < 0.5:
        writer.transport.abort()
    writer.close()


async def test_two_hundred_who_leave_leave_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(step_s=0.001)) as server:
        for first in range(0, 200, 20):
            await asyncio.gather(*(leave_early(server, seed) for seed in range(first, first + 20)))
        assert await server.settled()


async def test_a_reader_who_takes_nothing_is_dropped(tmp_path: Path) -> None:
    limits = Limits(send_timeout_s=0.3)
    async with serving(tmp_path, FakeEngine(script=b"x" * 1000), limits=limits) as server:
        ask = {"model": BASE, "prompt": ["a"] * 32, "n": 4, "max_tokens": 500, "logprobs": 20, "stream": True}
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(raw_post(json.dumps(ask)))
            async with asyncio.timeout(10):
                while not server.service.admission.requests:
                    await server.engine.status()
                while server.service.admission.requests:
                    await server.engine.status()
            assert await server.settled()
            assert b"[DONE]" not in await asyncio.to_thread(read_to_the_end, sock)


def read_to_the_end(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while data := sock.recv(1 << 20):
            received += data
    return received


@pytest.mark.parametrize("sends_before", [0, 1, 3])
async def test_a_send_that_never_returns_ends_the_work(caplog: pytest.LogCaptureFixture, sends_before: int) -> None:
    """Where the kernel does not drop the connection by itself."""
    sent, ended = 0, asyncio.Event()

    async def produce(send_events: SendEvents) -> list[object]:
        try:
            while True:
                await send_events({})
        finally:
            ended.set()

    async def send(_message: object) -> None:
        nonlocal sent
        sent += 1
        if sent > sends_before:
            await asyncio.Event().wait()

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    await EventStream(produce, send_timeout_s=0.02)({"type": "http"}, receive, send)
    assert ended.is_set()
    assert "event=reader_dropped" in caplog.text


async def test_a_stream_may_last_longer_than_a_send(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[dict[str, object]] = []

    async def produce(send_events: SendEvents) -> list[object]:
        for _ in range(5):
            await asyncio.sleep(0.01)
            await send_events(1, 2)
        return [3]

    async def send(message: Message) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    await EventStream(produce, send_timeout_s=0.02)({"type": "http"}, receive, send)
    assert [message.get("body") for message in sent[1:]] == [
        *[b"data: 1\n\ndata: 2\n\n"] * 5,
        b"data: 3\n\ndata: [DONE]\n\n",
    ]
    assert "reader_dropped" not in caplog.text


# ---- an engine that dies ----


async def test_a_killed_engine_is_503_for_what_ran_and_the_next_request_works(tmp_path: Path) -> None:
    options = EngineOptions(tmp_path, command=(sys.executable, fake_engine.__file__), restart_first_s=0.01)
    async with (
        supervised_engine(options, tmp_path / "state") as engine,
        serving(tmp_path / "model", engine) as server,
    ):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as died:
                await server.openai.completions.create(model=BASE, prompt=[CRASH], stream=stream)
            assert (died.value.status_code, died.value.code) == (503, "engine_unavailable")
            assert died.value.response.headers["retry-after"] == "1"
            answer = await server.openai.completions.create(model="poet", prompt="a")
            assert len(answer.choices[0].text) == 16


async def test_health_tells_whether_there_is_an_engine(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        alive = await server.http.get("/health")
        server.engine.detach()
        dead = await server.http.get("/health")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert dead.status_code == 503


async def test_streams_may_end_when_the_server_stops(tmp_path: Path) -> None:
    engine = FakeEngine(step_s=0.002)

    async with serving(tmp_path, engine) as server:
        body = {"model": BASE, "prompt": "a", "max_tokens": 100, "stream": True}
        answer = asyncio.create_task(server.post("/v1/completions", body))
        async with asyncio.timeout(5):
            while not (await server.engine.status()).running:
                pass
    response: httpx.Response = await answer
    assert response.text.endswith("data: [DONE]\n\n")
