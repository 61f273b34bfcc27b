"""Speaks with the MQTT broker. It may be away, slow, or refuse us: the node works on as if there were none."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import aiomqtt
from eth_account.signers.local import LocalAccount

from openlora.node.supervise import Backoff
from openlora.node.tasks import running
from openlora.node.telemetry.broker import Broker, Client
from openlora.node.telemetry.outbox import Waiting
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import BirthMessage, Message, StateMessage, encode
from openlora.typed_data import Domain, sign_digest, telemetry_birth_digest

log = logging.getLogger(__name__)

QOS: Final = 1  # the broker says that it has a message
KEEPALIVE_S: Final = 10  # a silent node's last will is out after 1.5 of these
TIMEOUT_S: Final = 10.0  # for the broker's answer
FAREWELL_S: Final = 1.0
RETELL_S: Final = 60.0  # until a broker that refused messages is told everything anew


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
    """Sends what the reporter puts, in order, one at a time; connects anew, with patience, whenever the broker goes.

    What the broker refuses is not sent again before `retell_s` are over: then it may have another ACL.
    """

    broker: Broker
    session: Session
    reporter: Reporter
    backoff: Callable[[], Backoff] = Backoff
    retell_s: float = RETELL_S
    _sequence: int = 0
    _refused: dict[type[Message], str] = field(default_factory=dict)  # the last message of a kind, and why

    @property
    def refusal(self) -> str:
        """Why the broker, to which this node is connected, takes no messages of some kind or other; "": it does."""
        return next(iter(self._refused.values()), "")

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
            self._refused.clear()
            _end_if_cancelled()
            await asyncio.sleep(backoff.after(time.monotonic() - started_s))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """A connection whose end, in order or not, leaves the retained state offline; the block ends when it does."""
        state_topic = self.reporter.place.topic("state")
        will = aiomqtt.Will(state_topic, self._offline(), QOS, retain=True)
        identifier = f"openlora-{self.session.operator.lower()}"
        async with self.broker.connected(identifier, TIMEOUT_S, will=will, keepalive_s=KEEPALIVE_S) as client:
            try:
                async with running(_until_gone(client), "mqtt-reader"):
                    yield client
            finally:
                with suppress(aiomqtt.MqttError):
                    await client.publish(state_topic, self._offline(), QOS, retain=True, timeout=FAREWELL_S)

    async def _send_all(self, client: Client) -> None:
        outbox = self.reporter.outbox
        self._tell_anew()
        retell_at_s: float | None = None  # by the loop's clock
        while True:
            _end_if_cancelled()
            try:
                async with asyncio.timeout_at(retell_at_s):
                    message = await outbox.oldest()
            except TimeoutError:
                self._tell_anew()
                retell_at_s = None
                continue
            refusal = await client.tell(message.topic, encode(self._numbered(message)), QOS, retain=message.retain)
            outbox.sent(message)
            self._heed(message, refusal)
            if refusal and retell_at_s is None:
                retell_at_s = asyncio.get_running_loop().time() + self.retell_s

    def _tell_anew(self) -> None:
        self.reporter.outbox.put(self.session.birth(self.reporter.place.topic("birth")))
        self.reporter.repeat()

    def _heed(self, message: Waiting, refusal: str) -> None:
        if not refusal:
            self._refused.pop(message.kind, None)
        elif message.kind not in self._refused:
            log.warning("event=broker_refuses topic=%s reason=%r", message.topic, refusal)
            self._refused[message.kind] = refusal

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


async def _until_gone(client: Client) -> None:
    """Raises MqttError when the connection ends; nothing is subscribed to."""
    async for _ in client.messages:
        pass
