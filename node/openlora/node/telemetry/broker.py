"""The MQTT broker that is configured: how to reach it, and a client that hears what it refuses."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from openlora.node.api.server import is_loopback
from openlora.node.config import MqttConfig
from openlora.node.errors import ConfigError

UNSUPPORTED_VERSION: Final = 0x84  # of the protocol


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

    @asynccontextmanager
    async def connected(
        self, identifier: str, timeout_s: float, *, will: aiomqtt.Will | None = None, keepalive_s: int = 60
    ) -> AsyncIterator["Client"]:
        """By MQTT 5, in which a broker says what it refuses, or by 3.1.1 where it knows nothing newer. Raises
        MqttError."""
        options: dict[str, Any] = {
            "identifier": identifier,
            "username": self.username,
            "password": self.password,
            "tls_context": self.tls,
            "transport": "websockets" if self.websocket_path else "tcp",
            "websocket_path": self.websocket_path or None,
            "will": will,
            "keepalive": keepalive_s,
            "timeout": timeout_s,
            "max_queued_incoming_messages": 1,
        }
        async with AsyncExitStack() as stack:
            try:
                newest = Client(self.host, self.port, protocol=aiomqtt.ProtocolVersion.V5, **options)
                client = await stack.enter_async_context(newest)
            except aiomqtt.MqttCodeError as error:
                if error.rc != UNSUPPORTED_VERSION:
                    raise
                client = await stack.enter_async_context(Client(self.host, self.port, **options))
            yield client


class Client(aiomqtt.Client):
    """aiomqtt's, which passes over what the broker says of a message."""

    _said: ReasonCode | None = None  # of the last one

    async def tell(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> str:
        """Publishes, one at a time. Returns why the broker refused it, "" if it did not. Raises MqttError."""
        self._said = None
        await self.publish(topic, payload, qos, retain=retain)
        return str(self._said) if self._said is not None and self._said.is_failure else ""

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        self._said = reason_code
        super()._on_publish(client, userdata, mid, reason_code, properties)


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
