"""The MQTT broker of a dev network, and the tokens of those who use it."""

import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openlora.node.config import MqttConfig
from openlora.node.errors import ConfigError

HOST: Final = "127.0.0.1"
DASHBOARD: Final = "dashboard"  # the user who reads; the others are nodes, by their operator's address in lower case


@dataclass(frozen=True, slots=True)
class DevMqtt:
    """A broker on this machine. A user's token is in a file of its name, readable by its owner alone."""

    port: int
    websocket_port: int
    folder: Path

    def token_file(self, user: str = DASHBOARD) -> Path:
        return self.folder / f"{user}.password"

    def config(self, operator: str) -> MqttConfig:
        """What a node is told of it."""
        return MqttConfig(
            host=HOST, port=self.port, tls=False, password_file=str(self.token_file(operator.lower()).absolute())
        )


@asynccontextmanager
async def dev_mqtt(folder: Path, operators: Iterable[str], port: int) -> AsyncIterator[DevMqtt]:
    """Runs a broker for nodes of these operators and for dashboards until the block ends; `port` 0 picks a free one.

    Raises ConfigError for a port in use, and where the broker's package is missing.
    """
    try:
        from openlora.node.telemetry.dev_broker import dev_broker
    except ImportError as error:
        raise ConfigError(f"a broker needs the package amqtt ({error}): pip install 'openlora[devnet]'") from None
    mqtt = DevMqtt(port or _free_port(), _free_port(), folder)
    tokens = {user.lower(): secrets.token_urlsafe(24) for user in (DASHBOARD, *operators)}
    folder.mkdir(mode=0o700)
    for user, token in tokens.items():
        mqtt.token_file(user).touch(mode=0o600)
        mqtt.token_file(user).write_text(token + "\n")
    async with dev_broker(tokens, mqtt.port, mqtt.websocket_port):
        yield mqtt


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
