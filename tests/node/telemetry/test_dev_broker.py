"""The broker of dev networks: dashboards see what nodes say, and a foreign token neither reads nor forges anything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from eth_account import Account

from openlora.node.dev_mqtt import DASHBOARD, dev_mqtt
from openlora.node.errors import ConfigError
from openlora.node.tasks import running
from openlora.node.telemetry.broker import Broker
from openlora.node.telemetry.dev_broker import dev_broker
from openlora.node.telemetry.outbox import Outbox
from openlora.node.telemetry.publisher import Publisher, Session
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import Place, StateMessage
from openlora.typed_data import Domain
from tests.node.facts import OPERATOR, RIVAL
from tests.node.telemetry.broker import free_port, wire_to
from tests.node.telemetry.scene import CHAIN_ID, observed

US, THEM = OPERATOR.lower(), RIVAL.lower()
TOKENS = {US: "token of ours", THEM: "token of theirs", DASHBOARD: "token of the dashboard"}
STATE = Place(31337, OPERATOR).topic("state")
JOB = Place(31337, OPERATOR).topic("jobs/1")
THEIRS = Place(31337, RIVAL).topic("state")


@dataclass
class Ports:
    tcp: int
    websocket: int

    def client(self, user: str, **options: object) -> aiomqtt.Client:
        chosen = {"port": self.tcp, "username": user, "password": TOKENS.get(user)} | options
        return aiomqtt.Client("127.0.0.1", **chosen)

    def dashboard(self, *, websocket: bool = False) -> aiomqtt.Client:
        if websocket:
            return self.client(DASHBOARD, port=self.websocket, transport="websockets")
        return self.client(DASHBOARD)


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    ports = Ports(free_port(), free_port())
    async with dev_broker(TOKENS, ports.tcp, ports.websocket):
        yield ports


async def heard(client: aiomqtt.Client, count: int) -> list[tuple[str, bytes]]:
    async with asyncio.timeout(5):
        return [(str(message.topic), bytes(message.payload)) async for message, _ in numbered(client, count)]


async def numbered(client: aiomqtt.Client, count: int) -> AsyncIterator[tuple[aiomqtt.Message, int]]:
    for number in range(count):
        yield await anext(client.messages), number


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_dashboard_hears_what_is_retained_and_what_comes(ports: Ports, websocket: bool):
    async with ports.client(US) as node:
        await node.publish(STATE, b"here", qos=1, retain=True)
        async with ports.dashboard(websocket=websocket) as dashboard:
            await dashboard.subscribe("openlora/v1/#", qos=1)
            assert await heard(dashboard, 1) == [(STATE, b"here")]
            await node.publish(JOB, b"job", qos=1)
            assert await heard(dashboard, 1) == [(JOB, b"job")]


async def test_a_node_that_vanishes_leaves_its_last_will(ports: Ports):
    will = aiomqtt.Will(STATE, b"gone", 1, retain=True)
    async with ports.dashboard() as dashboard, wire_to(ports.tcp) as wire:
        await dashboard.subscribe("openlora/v1/#", qos=1)
        with suppress(aiomqtt.MqttError):  # its end of the wire is cut too
            async with ports.client(US, port=wire.port, will=will) as node:
                await node.publish(STATE, b"here", qos=1, retain=True)
                assert await heard(dashboard, 1) == [(STATE, b"here")]
                wire.cut()
                await anext(node.messages)
        assert await heard(dashboard, 1) == [(STATE, b"gone")]
    async with ports.dashboard() as late:
        await late.subscribe(STATE, qos=1)
        assert await heard(late, 1) == [(STATE, b"gone")]


async def test_a_foreign_token_reads_nothing_of_others(ports: Ports):
    """Not what is retained, not what comes, not by a dashboard's client id, and not while a dashboard listens."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(ports.client(US))
        await node.publish(STATE, b"retained", qos=1, retain=True)
        dashboard = await stack.enter_async_context(ports.client(DASHBOARD, identifier="d"))
        await dashboard.subscribe("#", qos=1)
        await heard(dashboard, 1)
        foreign = await stack.enter_async_context(ports.client(THEM, identifier="d", clean_session=False))
        for wanted in ("#", STATE, "openlora/v1/+/+/state", f"openlora/v1/31337/{US}/#"):
            (granted,) = await foreign.subscribe(wanted, qos=1)
            assert granted == 0x80 or getattr(granted, "is_failure", False), wanted
        await node.publish(JOB, b"passing", qos=1)
        assert await heard(dashboard, 1) == [(JOB, b"passing")], "and the dashboard is still there"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(foreign.messages)


async def test_a_foreign_token_forges_nothing(ports: Ports):
    async with ports.dashboard() as dashboard, ports.client(THEM) as foreign:
        await dashboard.subscribe("#", qos=1)
        for topic in (STATE, "openlora/v1/31337", f"openlora/v1/{THEM}", "else/where", f"x/v1/31337/{THEM}/state"):
            await foreign.publish(topic, b"forged", qos=1, retain=True)
        await foreign.publish(THEIRS, b"its own", qos=1)
        assert await heard(dashboard, 1) == [(THEIRS, b"its own")]
    with pytest.raises(aiomqtt.MqttError):
        async with ports.client(THEM, will=aiomqtt.Will(STATE, b"forged", 1, retain=True)):
            pass


@pytest.mark.parametrize(
    "options",
    [{"password": "guess"}, {"password": None}, {"username": None, "password": None}, {"username": "nobody"}],
)
async def test_without_a_token_there_is_no_connection_and_no_session_is_touched(ports: Ports, options):
    async with ports.client(DASHBOARD, identifier="d") as dashboard, ports.client(US) as node:
        await dashboard.subscribe("#", qos=1)
        with pytest.raises(aiomqtt.MqttError):
            async with ports.client(DASHBOARD, identifier="d", **options):
                pass
        await node.publish(JOB, b"job", qos=1)
        assert await heard(dashboard, 1) == [(JOB, b"job")]


async def test_a_port_in_use_is_one_sentence(ports: Ports, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError, match=rf"no MQTT broker on ports {ports.tcp} and"):
        async with dev_broker(TOKENS, ports.tcp, free_port()):
            pass


async def test_a_node_is_told_all_it_needs_to_be_seen(tmp_path: Path):
    """What a dev network writes into a node's configuration, through the node's own publisher, to a dashboard."""
    async with observed(tmp_path) as scene, dev_mqtt(tmp_path / "mqtt", [OPERATOR, RIVAL], 0) as mqtt:
        publisher = Publisher(
            broker=Broker.of(mqtt.config(OPERATOR), OPERATOR),
            session=Session.begin(OPERATOR, Account.from_key(b"\x07" * 32), Domain(CHAIN_ID, RIVAL)),
            reporter=Reporter(
                place=Place(CHAIN_ID, OPERATOR),
                outbox=Outbox(),
                observe=scene.observer.snapshot,
                jobs_changed_since=scene.journal.changed_since,
            ),
        )
        token = mqtt.token_file().read_text().strip()
        assert mqtt.token_file().stat().st_mode & 0o077 == 0
        dashboard = aiomqtt.Client("127.0.0.1", mqtt.port, username=DASHBOARD, password=token)
        async with dashboard, running(publisher.run(), "publisher"):
            await dashboard.subscribe(STATE, qos=1)
            ((_, payload),) = await heard(dashboard, 1)
        told = msgspec.json.decode(payload, type=StateMessage)
        assert told.online
        assert told.state is not None
        assert told.state.node.operator == OPERATOR
