"""One node's life as services of a machine, with a broker and dashboards: what is seen of it, and what never is."""

import asyncio
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt
import httpx
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from websockets.sync.client import connect

from openlora.node import agent_client
from openlora.node.config import NodeConfig, load
from openlora.node.devnet import Devnet, DevNode
from openlora.node.telemetry.snapshot import Snapshot
from openlora.node.telemetry.topics import Place, StateMessage
from tests.e2e.agents import agent, wait_until
from tests.e2e.conftest import Command
from tests.e2e.services import services
from tests.node.telemetry.broker import Mosquitto, mosquitto

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

PROMPT = "Write a story about the heron Xanthippe-4711 and her brass telescope."
PRIVATE_PROMPT = "Tell me of Ouagadougou in one sentence."
MQTT_PASSWORD = "canary-of-the-broker-8d1f"
BACKUP_PASSWORD = "canary-of-the-backup-77ac"
SAME = ("node", "chain", "model", "stake", "jobs_by_state", "adapters", "earnings")  # not: what changes by the second


@dataclass
class Life:
    """What was gathered of it, in the order it happened."""

    secrets: dict[str, str]
    told: set[str] = field(default_factory=set)  # to the service manager
    finished: bool = False
    mqtt: list[tuple[str, bytes]] = field(default_factory=list)
    http: dict[str, str] = field(default_factory=dict)
    processes: dict[str, str] = field(default_factory=dict)  # limits, command line and environment
    cores: list[Path] = field(default_factory=list)
    seen: dict[str, Snapshot] = field(default_factory=dict)  # by each dashboard, at one moment
    logs: str = ""  # JSON lines of all three processes
    text_logs: str = ""  # of the node that ran again
    backup: str = ""  # where it is, what was printed of it, and what is legible in it
    offline_after_s: float | None = None
    offline: StateMessage | None = None


@pytest.fixture(scope="module")
def life(net: Devnet, openlora, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    node, operator = net.nodes[0], net.people["operator 1"].address
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        users = {operator.lower(): MQTT_PASSWORD}
        folder = tmp_path_factory.mktemp("broker")
        broker = stack.enter_context(portal.wrap_async_context_manager(mosquitto(folder, users)))
        listen_at = configure(node.folder, broker)
        place = Place(net.chain.chain_id, operator)
        life = Life(secrets=secrets(net))
        watching = portal.start_task_soon(listen, broker, life.mqtt)
        with services(node.folder) as running:
            submit = ("job", "submit", PROMPT, "--adapter", "pirate", "--max-tokens", 48)
            openlora(*submit, "--client", net.client_config)
            text = agent_client.watch(node.socket, 1)
            wait_until(lambda: next(text)[1], "the first token")
            running.engine.kill()
            running.network.kill()
            job = "/v1/jobs/1"
            wait_until(lambda: agent_client.get(node.socket, job)["state"] in ("committed", "finalized"), "the answer")
            life.finished = True
            done = openlora("job", "result", 1, "--client", net.client_config, "--json")
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)["text"]
            assert len(answer) > 40
            life.secrets["answer"] = max(answer.splitlines(), key=len)
            done = openlora(
                "job", "submit", PRIVATE_PROMPT, "--private", "--max-tokens", 16, "--client", net.client_config
            )
            assert done.returncode == 0, done.stderr
            life.secrets["private answer"] = max(done.stdout.splitlines()[1:-1], key=len)
            for job in ("/v1/jobs/1", "/v1/jobs/2"):
                wait_until(lambda job=job: agent_client.get(node.socket, job)["state"] == "finalized", "the fee")
            life.processes = {name: shown_of(pid) for name, pid in running.processes().items()}
            life.http = scrape(listen_at) | scrape_socket(node.socket)
            life.seen = asyncio.run(same_view(broker, place, listen_at))
            life.told = running.heard()
            running.agent.send_signal(signal.SIGKILL)
            killed_s = time.monotonic()
            life.offline = asyncio.run(until_offline(broker, place))
            life.offline_after_s = time.monotonic() - killed_s
            life.logs = running.logs()
            life.cores = [path for path in (*node.folder.rglob("core*"), *Path().glob("core*")) if path.is_file()]
        live_again(node, net, openlora, life)
        watching.cancel()
        yield life


def live_again(node: DevNode, net: Devnet, openlora: Command, life: Life) -> None:
    """The same prompt once more, while the node logs text; then its backup."""
    node.config.write_text(node.config.read_text().replace('format = "json"', 'format = "text"'))
    submit = ("job", "submit", PROMPT, "--adapter", "pirate", "--max-tokens", 48, "--watch", "--json")
    with agent(node.folder) as process:
        done = openlora(*submit, "--client", net.client_config)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])["text"]
        life.secrets["second answer"] = max(answer.splitlines(), key=len)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    (node.folder / "backup.password").write_text(BACKUP_PASSWORD + "\n")
    archive = node.folder / "backup"
    done = openlora("backup", archive, "--config", node.config, "--password-file", node.folder / "backup.password")
    assert done.returncode == 0, done.stderr
    life.text_logs = (node.folder / "node.log").read_text()
    life.backup = done.stdout + done.stderr + archive.read_bytes().decode("latin-1")


def configure(folder: Path, broker: Mosquitto) -> str:
    """The node tells a broker, and logs all it has to say. Returns where its dashboard listens."""
    (folder / "mqtt.password").write_text(MQTT_PASSWORD + "\n")
    path = folder / "node.toml"
    text = path.read_text()
    for old, new in (
        ('host = "" ', 'host = "127.0.0.1" '),
        ("port = 8883", f"port = {broker.port}"),
        ('ca_file = "" ', f'ca_file = "{broker.ca_file}" '),
        ('password_file = "" ', f'password_file = "{folder}/mqtt.password" '),
        ('format = "auto"', 'format = "json"'),
        ('level = "info"', 'level = "debug"'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)
    return load(path, NodeConfig).telemetry.listen


def secrets(net: Devnet) -> dict[str, str]:
    folder = net.nodes[0].folder
    return {
        "prompt": "Xanthippe-4711",
        "private prompt": "Ouagadougou",
        "broker's password": MQTT_PASSWORD,
        "backup's password": BACKUP_PASSWORD,
        "hot key's password": (folder / "hot.password").read_text().strip(),
        "operator key's password": (folder / "operator.password").read_text().strip(),
        "hot key": net.people["hot key 1"].key.hex().removeprefix("0x"),
        "operator key": net.people["operator 1"].key.hex().removeprefix("0x"),
    }


async def listen(broker: Mosquitto, heard: list[tuple[str, bytes]]) -> None:
    async with broker.dashboard() as client:
        await client.subscribe("#", qos=1)
        async for message in client.messages:
            heard += [(str(message.topic), bytes(message.payload))]


async def retained(client: aiomqtt.Client, topic: str) -> StateMessage:
    async with asyncio.timeout(10), client:
        await client.subscribe(topic, qos=1)
        message = await anext(client.messages)
        return msgspec.json.decode(message.payload, type=StateMessage)


async def same_view(broker: Mosquitto, place: Place, listen_at: str) -> dict[str, Snapshot]:
    """What each dashboard sees once all see the same, or at last: a block may come between two looks."""
    for _ in range(20):
        seen = await everyones_view(broker, place, listen_at)
        if len({msgspec.json.encode([getattr(view, part) for part in SAME]) for view in seen.values()}) == 1:
            break
    return seen


async def everyones_view(broker: Mosquitto, place: Place, listen_at: str) -> dict[str, Snapshot]:
    topic = place.topic("state")
    over_tcp = (await retained(broker.dashboard(), topic)).state
    over_websocket = (await retained(broker.dashboard(websocket=True), topic)).state
    async with httpx.AsyncClient(timeout=10) as http:
        polled = (await http.get(f"http://{listen_at}/v1/state")).content
    return {"tcp": over_tcp, "websocket": over_websocket, "http": msgspec.json.decode(polled, type=Snapshot)}


async def until_offline(broker: Mosquitto, place: Place) -> StateMessage:
    while (message := await retained(broker.dashboard(), place.topic("state"))).online:
        pass
    return message


def scrape(listen_at: str) -> dict[str, str]:
    """All that the dashboard's port shows: the page and its files, every route below /v1, the metrics, and events."""
    with httpx.Client(base_url=f"http://{listen_at}", timeout=10) as http:
        pages = routes_of(http) | {"/": http.get("/").text, "/metrics": http.get("/metrics").text}
        for path in re.findall(r'(?:src|href)="(/?[^":#]+)"', pages["/"]):
            pages[path] = http.get("/" + path.lstrip("/")).text
    with connect(f"ws://{listen_at}/v1/events") as events:
        pages["/v1/events"] = str(events.recv(timeout=10))
    return {f"{listen_at} {path}": text for path, text in pages.items()}


def scrape_socket(path: Path) -> dict[str, str]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://agent", timeout=10) as http:
        return {f"agent.sock {path}": text for path, text in routes_of(http).items()}


def routes_of(http: httpx.Client) -> dict[str, str]:
    """What the OpenAPI document has a GET for; but a job's stream, which is its answer."""
    described = http.get("/openapi.json")
    pages = {"/openapi.json": described.text}
    for route, methods in described.json().get("paths", {}).items():
        if "get" in methods and not route.endswith("/stream"):
            for job_id in ("1", "2"):
                pages[f"{job_id} {route}"] = http.get(re.sub(r"\{\w+\}", job_id, route)).text
    return pages


def shown_of(pid: int) -> str:
    """What another process of this machine can read of one, memory aside."""
    return "".join(Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("limits", "cmdline", "environ"))


def test_a_job_is_finished_though_engine_and_network_are_killed_and_started_by_another_hand(life: Life):
    assert life.finished
    events = [json.loads(line)["event"] for line in life.logs.splitlines() if '"event":' in line]
    assert {"engine_ended", "engine_restarted", "network_ended", "network_restarted", "job_committed"} <= set(events)


def test_the_service_manager_hears_that_the_node_is_ready_and_lives(life: Life):
    assert {"READY=1", "WATCHDOG=1"} <= life.told


def test_dashboards_over_mqtt_and_websocket_and_http_see_the_same(life: Life):
    for part in SAME:
        views = [getattr(view, part) for view in life.seen.values()]
        assert views[0] == views[1] == views[2], part
    assert life.seen["http"].jobs_by_state == {"finalized": 2}


def test_a_node_that_is_killed_is_offline_to_whoever_looks(life: Life):
    assert life.offline is not None
    assert life.offline.state is None
    assert life.offline_after_s is not None
    assert life.offline_after_s < 5


def test_every_line_of_the_log_is_an_object_that_names_its_job(life: Life):
    lines = [json.loads(line) for line in life.logs.splitlines()]
    assert {line["job_id"] for line in lines if line.get("event", "").startswith("job_")} == {1, 2}
    assert {"debug", "info"} <= {line["level"] for line in lines}


def test_no_secret_is_in_a_log_a_page_a_topic_a_metric_or_a_process_list(life: Life):
    places = {
        "the log as JSON": life.logs,
        "the log as text": life.text_logs,
        "the backup": life.backup,
        **{f"topic {topic}": payload.decode() for topic, payload in life.mqtt},
        **life.http,
        **life.processes,
    }
    assert "job_committed" in life.logs
    assert " event=job_committed job_id=3" in life.text_logs
    assert " level=DEBUG " in life.text_logs
    assert any(topic.endswith("/jobs/1") for topic, _ in life.mqtt)
    assert any("openlora_jobs" in page for page in life.http.values())
    assert any(place.endswith("/v1/jobs/{job_id}") and '"finalized"' in page for place, page in life.http.items())
    assert any(place.endswith(".js") for place in life.http)
    assert life.processes.keys() == {"agent", "engine", "network"}
    leaks = [(name, place) for name, secret in life.secrets.items() for place in places if secret in places[place]]
    assert leaks == []


def test_no_process_of_the_node_may_leave_a_core(life: Life):
    for name, text in life.processes.items():
        assert re.search(r"Max core file size +0 +0 ", text), name
    assert life.cores == []
