"""The feed and its WebSocket: everything first, then each change within a second; slow readers are dropped."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from openlora.contracts import Paid, Role
from openlora.node.api.agent import DashboardPort
from openlora.node.api.events import TOO_MANY, TOO_SLOW
from openlora.node.api.keys import MAX_SESSIONS, SESSION_S, BrowserSessions
from openlora.node.config import TelemetryConfig
from openlora.node.errors import ConfigError, Overloaded
from openlora.node.telemetry import feed
from openlora.node.telemetry.feed import EVENTS, Feed, Listener
from openlora.node.telemetry.history import sample
from tests.node.dashboard.world import Served, busy, served, world
from tests.node.facts import OPERATOR, claimed

KEY = "a-key-of-some-length"


def listening(server: Served, **headers: str) -> connect:
    url = server.url.replace("http", "ws") + "/v1/events"
    return connect(url, additional_headers=headers, max_size=None, proxy=None, ping_interval=None)


async def heard(socket: ClientConnection, wanted: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            event: dict[str, Any] = msgspec.json.decode(await socket.recv())
            if event["type"] == wanted:
                return event


async def until_closed(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def test_everything_comes_first_and_then_what_changed(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown) as server, listening(server) as socket:
        busy_before = await heard(socket, "everything")
        assert (busy_before["sequence_number"], busy_before["jobs"], busy_before["nodes"]) == (1, [], [])
        busy(shown)
        jobs = await heard(socket, "jobs")
        assert {job["job_id"] for job in jobs["jobs"]} == set(range(1, 61))
        network = await heard(socket, "network")
        assert (len(network["nodes"]), network["gone"]) == (6, [])
        at_s = asyncio.get_running_loop().time()
        shown.apply(Paid(OPERATOR, Role.NODE, 1, 77))
        state = await heard(socket, "state")
        assert state["changed"].keys() == {"chain", "earnings"}
        assert asyncio.get_running_loop().time() - at_s < 1
        del shown.records[0]
        gone = await heard(socket, "network")
        assert (gone["nodes"], gone["gone"]) == ([], [OPERATOR.lower()])
        assert gone["sequence_number"] == state["sequence_number"] + 1


async def test_a_reorganisation_is_news(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown) as server, listening(server) as socket:
        await heard(socket, "everything")
        shown.submit(1)
        shown.apply(claimed(1), Paid(OPERATOR, Role.NODE, 1, 77))
        while (await heard(socket, "jobs"))["jobs"][0]["state"] != "claimed":
            pass
        shown.scene.reorganise(1)
        assert (await heard(socket, "jobs"))["jobs"][0]["state"] == "seen"
        async with listening(server) as later:
            state = (await heard(later, "everything"))["state"]
        assert state["earnings"]["paid_wei"] == "0"


async def test_every_event_fits_its_schema(tmp_path: Path):
    async with world(tmp_path) as shown:
        told = Feed(shown.board)
        with told.listener() as listener:
            await told.look()
            busy(shown)
            shown.board.history.samples.append(sample(await shown.observe(), 1.0))
            await told.look()
            while not listener.messages.empty():
                event = msgspec.json.decode(listener.messages.get_nowait())
                del event["sequence_number"]
                (kind,) = [kind for kind in EVENTS if kind.__struct_config__.tag == event["type"]]
                msgspec.convert(event, kind)


async def test_nobody_looks_while_nobody_listens(tmp_path: Path):
    async with world(tmp_path) as shown:
        told = Feed(shown.board, look_every_s=0)
        with told.listener():
            await told.look()
        looking = asyncio.create_task(told.run())
        shown.changes = {"no such part": None}  # whoever looks raises
        await asyncio.sleep(0.01)
        assert not looking.done()
        looking.cancel()


async def test_a_listener_who_reads_nothing_is_dropped_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "MAX_WAITING", 4)
    async with world(tmp_path) as shown, served(shown) as server:
        async with listening(server) as socket:
            await heard(socket, "everything")
            (listener,) = shown.feed._listeners
            while not listener.dropped.is_set():  # the queue, and before it the sockets' buffers
                listener.put(b'{"type":"noise","at_s":' + b"1" * 500_000 + b"}")
                await asyncio.sleep(0)
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(until_closed(socket), 5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == TOO_SLOW
        assert not shown.feed._listeners


async def test_listeners_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "MAX_LISTENERS", 1)
    async with world(tmp_path) as shown, served(shown) as server, listening(server) as socket:
        await heard(socket, "everything")
        with pytest.raises(Overloaded), shown.feed.listener():
            pass
        async with listening(server) as other:
            with pytest.raises(ConnectionClosed) as closed:
                await other.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == TOO_MANY


async def test_numbers_rise_by_one_until_a_listener_is_dropped():
    listener = Listener(asyncio.Queue(2))
    for _ in range(3):
        listener.put(b'{"type":"x"}')
    numbers = [msgspec.json.decode(listener.messages.get_nowait())["sequence_number"] for _ in range(2)]
    assert (numbers, listener.dropped.is_set()) == ([1, 2], True)


# ---- who may ----


async def test_with_keys_nobody_listens_or_reads_without(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown, [KEY]) as server:
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Cookie": "openlora_session=guess"}):
            with pytest.raises(InvalidStatus):
                async with listening(server, **headers):
                    pass
            for path in ("/v1/state", "/v1/jobs", "/v1/earnings", "/v1/network", "/v1/history", "/metrics", "/nowhere"):
                assert (await server.http.get(path, headers=headers)).status_code == 401
            assert (await server.http.post("/v1/session", headers=headers)).status_code == 401
        async with listening(server, Authorization=f"Bearer {KEY}") as socket:
            await heard(socket, "everything")
        assert (await server.http.get("/")).status_code == 200, "the page asks for the key itself"


async def test_a_browser_gets_a_cookie_for_its_key_until_it_leaves(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown, [KEY]) as server:
        login = await server.http.post(
            "/v1/session", headers={"Authorization": f"Bearer {KEY}", "Origin": "https://node.example"}
        )
        cookie = login.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Secure"} <= set(cookie.split("; "))
        assert KEY not in cookie
        held = {"Cookie": cookie.partition(";")[0]}
        server.http.cookies.clear()
        assert (await server.http.get("/v1/state", headers=held)).status_code == 200
        async with listening(server, **held) as socket:
            await heard(socket, "everything")
        assert (await server.http.delete("/v1/session", headers=held)).status_code == 204
        assert (await server.http.get("/v1/state", headers=held)).status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_another_origin_may_not_listen(tmp_path: Path, origin: str):
    async with world(tmp_path) as shown, served(shown) as server:
        with pytest.raises(InvalidStatus):
            async with listening(server, Origin=origin):
                pass
        async with listening(server, Origin=server.url) as socket:
            await heard(socket, "everything")


async def test_a_name_that_was_made_to_resolve_here_is_refused(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown) as server:
        for path in ("/", "/v1/state", "/page/page.css"):
            assert (await server.http.get(path, headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "[::]:1", "9464", "127.0.0.1", "127.0.0.1:x", ":9464"])
def test_nobody_else_can_reach_a_port_without_keys(listen: str):
    with pytest.raises(ConfigError, match=r"telemetry\."):
        DashboardPort.of(TelemetryConfig(listen=listen))


def test_with_keys_it_may_be_any_address(tmp_path: Path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    port = DashboardPort.of(TelemetryConfig(listen="[::]:9464", key_file=str(tmp_path / "keys")))
    assert port is not None
    assert (port.host, port.port, port.keys) == ("::", 9464, (KEY,))
    assert KEY not in repr(port)
    assert DashboardPort.of(TelemetryConfig()) is None


def test_sessions_end_and_the_oldest_gives_way():
    now_s = 0.0
    sessions = BrowserSessions(lambda: now_s)
    first, *others = [sessions.begin() for _ in range(MAX_SESSIONS)]
    assert all(map(sessions.has, [first, *others]))
    newest = sessions.begin()
    assert (sessions.has(first), sessions.has(others[0]), sessions.has(newest)) == (False, True, True)
    now_s = SESSION_S
    assert not sessions.has(newest)
