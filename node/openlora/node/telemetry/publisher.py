"""Speaks with the MQTT broker. It may be away, slow, or refuse us: the node works on as if there were none."""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiomqtt
from eth_account.signers.local import LocalAccount

from openlora.node.api.server import is_loopback
from openlora.node.config import MqttConfig
from openlora.node.errors import ConfigError
from openlora.node.supervise import Backoff
from openlora.node.tasks import running
from openlora.node.telemetry.outbox import Waiting
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import BirthMessage, Message, StateMessage, encode
from openlora.typed_data import Domain, sign_digest, telemetry_birth_digest

log = logging.getLogger(__name__)

QOS: Final = 1  # the broker says that it has a message
KEEPALIVE_S: Final = 10  # a silent node's last will is out after 1.5 of these
TIMEOUT_S: Final = 10.0  # for the broker's answer
FAREWELL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Broker:
    """How to reach it. The password is in no text made of this."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    websocket_path: str  # "": plain MQTT
    username: str
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, config: MqttConfig, operator: str) -> "Broker":
        """Raises ConfigError for files that cannot be read, and for a password that would travel in the clear."""
        password = None
        if config.password_file:
            password = _read(config.password_file).rstrip("\r\n")
            if not config.tls and not is_loopback(config.host):
                raise ConfigError("telemetry.mqtt: a password needs tls = true, but for a broker on this machine")
        return cls(
            host=config.host,
            port=config.port,
            tls=_tls(config.ca_file) if config.tls else None,
            websocket_path=config.websocket_path,
            username=config.username or operator.lower(),
            password=password,
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"telemetry.mqtt: {path} cannot be read: {error}") from None


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(f"telemetry.mqtt.ca_file {ca_file} cannot be used: {error}") from None


@dataclass(frozen=True, slots=True)
class Session:
    """One start of the agent: what all its messages carry, and the birth that vouches for them."""

    operator: str
    hot_key: str
    domain: Domain  # NodeRegistry's
    id: bytes
    started_at_s: int
    signature: bytes

    @classmethod
    def begin(cls, operator: str, hot_key: LocalAccount, domain: Domain) -> "Session":
        """Signs the birth; keeps no key."""
        session, started_at_s = secrets.token_bytes(32), int(time.time())
        signature = sign_digest(bytes(hot_key.key), telemetry_birth_digest(domain, operator, session, started_at_s))
        return cls(operator, hot_key.address, domain, session, started_at_s, signature)

    def birth(self, topic: str) -> Waiting:
        fields = {
            "at_s": float(self.started_at_s),
            "operator": self.operator,
            "hot_key": self.hot_key,
            "chain_id": self.domain.chain_id,
            "registry": self.domain.verifying_contract,
            "started_at_s": self.started_at_s,
            "signature": "0x" + self.signature.hex(),
        }
        return Waiting(topic, BirthMessage, fields, True)


@dataclass(slots=True, kw_only=True)
class Publisher:
    """Sends what the reporter puts, in order, one at a time; connects anew, with patience, whenever the broker goes."""

    broker: Broker
    session: Session
    reporter: Reporter
    backoff: Callable[[], Backoff] = Backoff
    _sequence: int = 0

    async def run(self) -> None:
        """Publishes until cancelled; then it says that the node is offline. Raises nothing else."""
        async with running(self._report(), "mqtt-reporter"):
            await self._publish()

    async def _report(self) -> None:
        backoff = self.backoff()
        while True:
            started_s = time.monotonic()
            try:
                await self.reporter.run()
            except Exception:  # a task's root: what a node tells of itself must not end it
                log.exception("event=telemetry_failed")
            await asyncio.sleep(backoff.after(time.monotonic() - started_s))

    async def _publish(self) -> None:
        backoff = self.backoff()
        while True:
            started_s = time.monotonic()
            try:
                async with self._connected() as client:
                    log.info("event=broker_connected host=%s port=%d", self.broker.host, self.broker.port)
                    await self._send_all(client)
            except aiomqtt.MqttError as error:
                log.warning("event=broker_away host=%s reason=%r", self.broker.host, str(error))
            except Exception:  # a task's root, as above
                log.exception("event=telemetry_failed")
            _end_if_cancelled()
            await asyncio.sleep(backoff.after(time.monotonic() - started_s))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiomqtt.Client]:
        """A connection whose end, in order or not, leaves the retained state offline; the block ends when it does."""
        broker, state_topic = self.broker, self.reporter.place.topic("state")
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=f"openlora-{self.session.operator.lower()}",
            username=broker.username,
            password=broker.password,
            tls_context=broker.tls,
            transport="websockets" if broker.websocket_path else "tcp",
            websocket_path=broker.websocket_path or None,
            will=aiomqtt.Will(state_topic, self._offline(), QOS, retain=True),
            keepalive=KEEPALIVE_S,
            timeout=TIMEOUT_S,
            max_queued_incoming_messages=1,
        )
        async with client:
            try:
                async with running(_until_gone(client), "mqtt-reader"):
                    yield client
            finally:
                with suppress(aiomqtt.MqttError):
                    await client.publish(state_topic, self._offline(), QOS, retain=True, timeout=FAREWELL_S)

    async def _send_all(self, client: aiomqtt.Client) -> None:
        outbox, place = self.reporter.outbox, self.reporter.place
        outbox.put(self.session.birth(place.topic("birth")))
        self.reporter.repeat()
        while True:
            _end_if_cancelled()
            message = await outbox.oldest()
            await client.publish(message.topic, encode(self._numbered(message)), QOS, retain=message.retain)
            outbox.sent(message)

    def _numbered(self, message: Waiting) -> Message:
        self._sequence += 1
        extra = {"dropped_messages": self.reporter.outbox.dropped} if message.kind is StateMessage else {}
        return message.kind(session=self.session.id.hex(), sequence_number=self._sequence, **extra, **message.fields)

    def _offline(self) -> bytes:
        """Has the number 0: it may have been written long before it is read."""
        return encode(
            StateMessage(
                session=self.session.id.hex(),
                sequence_number=0,
                at_s=time.time(),
                online=False,
                dropped_messages=self.reporter.outbox.dropped,
                state=None,
            )
        )


def _end_if_cancelled() -> None:
    """A cancellation that arrives together with the broker's answer is lost in `asyncio.wait_for`, through which
    aiomqtt waits, until Python 3.12."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _until_gone(client: aiomqtt.Client) -> None:
    """Raises MqttError when the connection ends; nothing is subscribed to."""
    async for _ in client.messages:
        pass
