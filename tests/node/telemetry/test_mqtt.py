"""What dashboards see over MQTT, through a real broker under the shipped configuration, and what nobody sees."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from eth_account import Account

from openlora.node.config import MqttConfig
from openlora.node.errors import ConfigError
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.supervise import Backoff
from openlora.node.tasks import running
from openlora.node.telemetry.broker import Broker
from openlora.node.telemetry.outbox import Outbox
from openlora.node.telemetry.publisher import Publisher, Session
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import BirthMessage, JobMessage, Place, StateMessage
from openlora.typed_data import Domain, signer_of, telemetry_birth_digest
from tests.node.facts import OPERATOR, RIVAL, submitted
from tests.node.telemetry.broker import Mosquitto, Wire, mosquitto, wire_to
from tests.node.telemetry.scene import CHAIN_ID, Scene, observed

HOT_KEY = Account.from_key(b"\x07" * 32)
CANARY = "canary-password-of-the-node"
REGISTRY = Domain(CHAIN_ID, "0x" + "1a" * 20)
PLACE = Place(CHAIN_ID, OPERATOR)


@dataclass
class Stage:
    scene: Scene
    broker: Mosquitto
    wire: Wire
    publisher: Publisher
    folder: Path

    @asynccontextmanager
    async def watching(self, *, websocket: bool = False) -> AsyncIterator["Dashboard"]:
        async with self.broker.dashboard(websocket=websocket) as client:
            await client.subscribe("openlora/v1/#", qos=1)
            yield Dashboard(client)

    async def until_refusal(self, wanted: str) -> None:
        async with asyncio.timeout(5):
            while self.publisher.refusal != wanted:
                await self.scene.observer.snapshot()


@dataclass
class Dashboard:
    client: aiomqtt.Client

    async def until(self, condition: Callable[[str, bytes], bool]) -> bytes:
        """The first message (topic below the node's, payload) that fulfils it."""
        async with asyncio.timeout(8):
            async for message in self.client.messages:
                payload = bytes(message.payload)  # type: ignore[arg-type]  # bytes are all that brokers send
                if condition(str(message.topic).removeprefix(PLACE.topic("")), payload):
                    return payload
        raise AssertionError("the broker said good-bye")

    async def until_topic(self, wanted: str) -> list[bytes]:
        """Everything up to the first message of a topic, that one's last."""
        seen: list[bytes] = []

        def noted(topic: str, payload: bytes) -> bool:
            seen.append(payload)
            return topic == wanted

        await self.until(noted)
        return seen

    async def until_state(self, condition: Callable[[StateMessage], bool]) -> StateMessage:
        def fulfilled(topic: str, payload: bytes) -> bool:
            return topic == "state" and condition(msgspec.json.decode(payload, type=StateMessage))

        return msgspec.json.decode(await self.until(fulfilled), type=StateMessage)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    (tmp_path / "broker").mkdir()
    (tmp_path / "password").write_text(CANARY + "\n")
    users = {OPERATOR.lower(): CANARY, RIVAL.lower(): "another"}
    async with (
        observed(tmp_path) as scene,
        mosquitto(tmp_path / "broker", users) as broker,
        wire_to(broker.port) as wire,
    ):
        config = MqttConfig(
            host="127.0.0.1",
            port=wire.port,
            ca_file=str(broker.ca_file),
            password_file=str(tmp_path / "password"),
        )
        publisher = Publisher(
            broker=Broker.of(config, OPERATOR),
            session=Session.begin(OPERATOR, HOT_KEY, REGISTRY),
            reporter=Reporter(
                place=PLACE,
                outbox=Outbox(),
                observe=scene.observer.snapshot,
                jobs_changed_since=scene.journal.changed_since,
            ),
            backoff=lambda: Backoff(first_s=0.05, max_s=0.1),
        )
        yield Stage(scene, broker, wire, publisher, tmp_path)


def has_waiting(jobs: int, message: StateMessage) -> bool:
    return message.state is not None and message.state.queue.waiting_jobs == jobs


async def test_a_dashboard_sees_the_state_http_shows_and_each_change_within_a_second(stage: Stage):
    loop = asyncio.get_running_loop()
    async with running(stage.publisher.run(), "publisher"), stage.watching() as first:
        seen = await first.until_state(lambda message: message.online)
        assert seen.state == await stage.scene.observer.snapshot()
        for websocket in (False, True):
            async with stage.watching(websocket=websocket) as dashboard:
                assert (await dashboard.until_state(lambda message: message.online)).state == seen.state
                changed_at_s = loop.time()
                stage.scene.apply(submitted(1 + websocket))
                told = await dashboard.until_state(partial(has_waiting, 1 + websocket))
                assert loop.time() - changed_at_s < 1.0
                assert told.sequence_number > seen.sequence_number
                seen = told


async def test_jobs_come_with_their_skip_codes_and_the_birth_is_the_hot_keys(stage: Stage):
    async with stage.watching() as dashboard, running(stage.publisher.run(), "publisher"):
        birth = msgspec.json.decode(await dashboard.until(lambda topic, _: topic == "birth"), type=BirthMessage)
        stage.scene.apply(submitted(5))
        stage.scene.journal.move(JobId(5), JobState.SKIPPED, skip=SkipCode.LOW_GAS)
        job = msgspec.json.decode(await dashboard.until(lambda topic, _: topic == "jobs/5"), type=JobMessage)
    assert (job.job.state, job.job.skip_code, job.session) == ("skipped", "low_gas", birth.session)
    digest = telemetry_birth_digest(REGISTRY, OPERATOR, bytes.fromhex(birth.session), birth.started_at_s)
    assert signer_of(digest, bytes.fromhex(birth.signature[2:])) == HOT_KEY.address.lower() == birth.hot_key.lower()
    assert (birth.operator, birth.chain_id, birth.registry) == (OPERATOR, CHAIN_ID, REGISTRY.verifying_contract)


async def test_a_node_that_vanishes_is_offline_and_comes_back_with_what_it_missed(stage: Stage):
    async with stage.watching() as dashboard, running(stage.publisher.run(), "publisher"):
        await dashboard.until_state(lambda message: message.online)
        stage.wire.cut()
        gone = await dashboard.until_state(lambda message: not message.online)
        assert gone.state is None
        stage.scene.apply(submitted(9))
        stage.wire.mend()
        back = await dashboard.until_state(lambda message: message.online)
        assert back.session == gone.session
        assert back.state is not None
        await dashboard.until(lambda topic, _: topic == "jobs/9")


async def test_a_node_that_stops_says_so(stage: Stage):
    async with stage.watching() as dashboard:
        async with running(stage.publisher.run(), "publisher"):
            await dashboard.until_state(lambda message: message.online)
        await dashboard.until_state(lambda message: not message.online)


async def test_nodes_write_their_own_topics_alone_and_read_none(stage: Stage):
    rival = aiomqtt.Client(
        "127.0.0.1", stage.broker.port, username=RIVAL.lower(), password="another", tls_context=stage.broker.tls
    )
    mark = Place(CHAIN_ID, RIVAL).topic("state")
    heard: list[str] = []

    async def listen() -> None:
        async for message in rival.messages:
            heard[:] = (*heard, str(message.topic))

    async with stage.watching() as dashboard, running(stage.publisher.run(), "publisher"), rival:
        await rival.subscribe("#", qos=1)
        async with running(listen(), "rival"):
            await dashboard.until_state(lambda message: message.online)
            await rival.publish(PLACE.topic("jobs/1"), b"forged", qos=1, retain=True)
            await rival.publish(PLACE.topic("state"), b"forged", qos=1, retain=True)
            await rival.publish(mark, b"its own", qos=1)
            seen = await dashboard.until_topic(mark)
    assert seen[-1] == b"its own"
    assert b"forged" not in seen
    assert heard == []


async def test_a_broker_that_refuses_the_nodes_topics_is_told_of(stage: Stage, caplog: pytest.LogCaptureFixture):
    user = RIVAL.lower()
    stage.publisher.broker = replace(stage.publisher.broker, username=user, password="another")
    stage.publisher.retell_s = 0.1
    async with stage.watching() as dashboard, running(stage.publisher.run(), "publisher"):
        await stage.until_refusal("Not authorized")
        with (stage.folder / "broker/openlora.acl").open("a") as acl:
            acl.write(f"\nuser {user}\ntopic write {PLACE.topic('#')}\n")
        stage.broker.reload()
        await dashboard.until(lambda topic, _: topic == "birth")
        await dashboard.until_state(lambda message: message.online)
        await stage.until_refusal("")
    told = [record.getMessage() for record in caplog.records if "broker_refuses" in record.getMessage()]
    assert f"event=broker_refuses topic={PLACE.topic('state')} reason='Not authorized'" in told
    assert len(told) == len(set(told)), "once for each kind of message"


async def test_no_secret_leaves_the_node(stage: Stage, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    secrets = (CANARY, HOT_KEY.key.hex().removeprefix("0x"))
    async with stage.watching() as dashboard, running(stage.publisher.run(), "publisher"):
        stage.scene.apply(submitted(1))
        told = await dashboard.until_topic("jobs/1")
        stage.wire.cut()
        await dashboard.until_state(lambda message: not message.online)
    everything = b"".join(told).decode() + caplog.text + repr(stage.publisher)
    assert "broker_away" in caplog.text
    assert [secret for secret in secrets if secret in everything] == []


async def test_a_broker_that_refuses_or_is_not_there_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens: a port that is free is soon another's
        async with observed(tmp_path) as scene:
            config = MqttConfig(host="127.0.0.1", port=nobody.getsockname()[1], tls=False)
            reporter = Reporter(
                place=PLACE,
                outbox=Outbox(),
                observe=scene.observer.snapshot,
                jobs_changed_since=scene.journal.changed_since,
                look_every_s=0.01,
            )
            publisher = Publisher(
                broker=Broker.of(config, OPERATOR),
                session=Session.begin(OPERATOR, HOT_KEY, REGISTRY),
                reporter=reporter,
                backoff=lambda: Backoff(first_s=0.01, max_s=0.01),
            )
            async with running(publisher.run(), "publisher") as task, asyncio.timeout(5):
                while caplog.text.count("broker_away") < 3 or not len(reporter.outbox):
                    await scene.observer.snapshot()
                assert not task.done()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"host": "192.0.2.1", "tls": False, "password_file": "{folder}/password"}, "needs tls"),
        ({"host": "127.0.0.1", "password_file": "{folder}/none"}, "cannot be read"),
        ({"host": "127.0.0.1", "ca_file": "{folder}/password"}, "cannot be used"),
    ],
)
def test_a_broker_that_would_not_do_is_refused_at_the_start(changes: dict[str, object], complaint: str, tmp_path: Path):
    (tmp_path / "password").write_text(CANARY)
    given = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=complaint) as caught:
        Broker.of(msgspec.convert(given, MqttConfig), OPERATOR)
    assert CANARY not in str(caught.value)
