"""An MQTT broker in this process, for a dev network: loopback alone, MQTT 3.1.1, a token for everyone.

A service uses mosquitto: what this one retains is gone with the process, and a last will must outlive the node. The
rules are those of `configs/mosquitto.acl`: a node writes its own topics and reads none, a dashboard reads them all.
"""

import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn

import websockets
from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.codecs_amqtt import read_or_raise
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import BrokerError, MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, UNACCEPTABLE_PROTOCOL_VERSION, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from openlora.node.dev_mqtt import DASHBOARD, HOST
from openlora.node.errors import ConfigError
from openlora.node.telemetry.topics import PREFIX

MAX_CONNECTIONS: Final = 256
MQTT_5: Final = b"\x00\x04MQTT\x05"  # a connection's first packet, after its length


@asynccontextmanager
async def dev_broker(tokens: Mapping[str, str], port: int, websocket_port: int) -> AsyncIterator[None]:
    """Serves users who know their token until the block ends. Raises ConfigError for a port that is in use."""
    logging.getLogger("amqtt").setLevel(logging.ERROR)  # it warns of every connection that ends early
    broker = TokenBroker(tokens, port, websocket_port)
    try:
        await broker.start()
    except BrokerError as error:
        raise ConfigError(f"no MQTT broker on ports {port} and {websocket_port} of {HOST}: {error}") from None
    try:
        yield
    finally:
        await broker.shutdown()


def may(user: str, topic: str, action: Action) -> bool:
    """Whether `user` may publish to `topic`, receive from it, or subscribe to it as a filter."""
    if action is Action.SUBSCRIBE:
        return user == DASHBOARD
    if not topic.startswith(f"{PREFIX}/"):
        return False
    if action is Action.RECEIVE:
        return user == DASHBOARD
    _chain_id, *below = topic.removeprefix(f"{PREFIX}/").split("/")
    return len(below) > 1 and below[0] == user != DASHBOARD


class TokenBroker(Broker):
    """amqtt's broker, but nobody is served before their token is known, and everyone hears only what they may.

    Six things of amqtt 0.12.1 are mended. It misreads a client that begins with MQTT 5, and waits for more instead of
    saying that it speaks 3.1.1 alone. Sessions are found and deleted by a client's id alone, before it is known who
    speaks: here an id belongs to a user, and no session outlives its connection. A last will is published wherever its
    client wishes. Every new client is sent what is retained for the subscriptions of all others. And a WebSocket's own
    pings are left out: MQTT has its own, and paho ends a connection that brings one.
    """

    def __init__(self, tokens: Mapping[str, str], port: int, websocket_port: int) -> None:
        listeners = {
            "default": ListenerConfig(bind=f"{HOST}:{port}", max_connections=MAX_CONNECTIONS),
            "websocket": ListenerConfig(
                type=ListenerType.WS, bind=f"{HOST}:{websocket_port}", max_connections=MAX_CONNECTIONS
            ),
        }
        super().__init__(BrokerConfig(listeners=listeners, plugins={}))
        self._tokens = {user: token.encode() for user, token in tokens.items()}

    async def _create_server_instance(
        self, name: str, kind: ListenerType, address: str | None, port: int, ssl_context: Any
    ) -> Any:
        if kind is not ListenerType.WS:
            return await super()._create_server_instance(name, kind, address, port, ssl_context)
        serve = partial(self.ws_connected, listener_name=name)
        return await websockets.serve(
            serve, address, port, subprotocols=[websockets.Subprotocol("mqtt")], ping_interval=None
        )

    async def _initialize_client_session(
        self, reader: Any, writer: Any, _address: str, _port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        beginning = await _beginning(reader)
        if beginning.endswith(MQTT_5):
            await _refuse(writer, UNACCEPTABLE_PROTOCOL_VERSION, "a client that speaks MQTT 5")
        again = _Again(beginning, reader)
        handler, session = await BrokerProtocolHandler.init_from_connect(again, writer, self.plugins_manager)
        if not self._is_welcome(session):
            why = "a client without a token, or with a last will that is not its own to say"
            await _refuse(writer, NOT_AUTHORIZED, why)
        session.clean_session = True
        session.client_id = f"{session.username}/{session.client_id}"
        await self._delete_session(session.client_id)
        return handler, session

    def _is_welcome(self, session: Session) -> bool:
        token = self._tokens.get(session.username or "")
        if token is None or not hmac.compare_digest(token, (session.password or "").encode()):
            return False
        return not session.will_flag or may(session.username, session.will_topic, Action.PUBLISH)

    async def _authenticate(self, _session: Session, _listener: ListenerConfig) -> bool:
        return True  # since its first packet

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        return may(session.username, topic, action)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if any(subscriber is session for subscriber, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)


class _Again(ReaderAdapter):
    """`beginning` once more, then what follows."""

    def __init__(self, beginning: bytes, reader: ReaderAdapter) -> None:
        self._beginning = beginning
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if not self._beginning:
            return bytes(await self._reader.read(n))
        part, self._beginning = self._beginning[:n], self._beginning[n:]
        return part

    def feed_eof(self) -> None:
        self._reader.feed_eof()


async def _beginning(reader: ReaderAdapter) -> bytes:
    """A packet's type, its length in up to four bytes, and its first seven bytes."""
    read = bytearray(await read_or_raise(reader, 2))
    while read[-1] & 0x80 and len(read) < 5:
        read += await read_or_raise(reader, 1)
    return bytes(read + await read_or_raise(reader, len(MQTT_5)))


async def _refuse(writer: WriterAdapter, code: int, why: str) -> NoReturn:
    await ConnackPacket.build(0, code).to_stream(writer)
    await writer.close()
    raise MQTTError(why)
