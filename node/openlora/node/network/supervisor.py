"""The network process as a child that is kept alive.

Its death loses nothing: the next one is told again whom to trust, what to announce and to provide, fetches go on from
the blocks that are there, and only requests to peers that were in flight fail.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from openlora.node.children import Child, Joining, Spawned
from openlora.node.frames import AsyncFrames
from openlora.node.network.answers import Handler
from openlora.node.network.client import NetworkClient
from openlora.node.network.connection import Connection
from openlora.node.network.messages import Event
from openlora.node.network.nodes import NodeTable
from openlora.node.network.options import NetworkOptions
from openlora.node.supervise import Patience, Supervisor

NETWORK_COMMAND: Final = (sys.executable, "-m", "openlora.node.network")
_PATIENCE: Final = Patience(start_timeout_s=60.0, stop_timeout_s=5.0, hang_timeout_s=30.0, restart_max_s=10.0)


@asynccontextmanager
async def supervised_network(
    options: NetworkOptions,
    state_dir: Path,
    *,
    patience: Patience = _PATIENCE,
    command: Sequence[str] = NETWORK_COMMAND,
    joins_at: Path | None = None,
) -> AsyncIterator[NetworkClient]:
    """The client of a network process that is restarted whenever it ends, until the block does.

    `state_dir` keeps the identity and the count of our presence records. With `joins_at`, a socket's path, the process
    is a service that joins there. Raises NetworkError with the process's own
    sentence if it cannot join, ChildDied if the first one ends or does not listen within `start_timeout_s`.
    """
    nodes = NodeTable()
    handlers: dict[str, Handler] = {}

    async def greet(child: Child) -> Connection:
        return await Connection.greet(AsyncFrames[Event](child.reader, child.writer, Event), nodes, handlers)

    arguments = ("--state", str(state_dir), "--options", msgspec.json.encode(options).decode())
    whole = (*command, *arguments)
    children = Joining(whole, joins_at) if joins_at else Spawned(whole, state_dir / "network.sock")
    supervisor = Supervisor("network", children, patience, greet)
    life = await supervisor.start()
    client = NetworkClient(life.link.ready, nodes, handlers, patience.restart_wait_s)
    async with supervisor.kept_alive(life, client):
        yield client
