"""The network process's end of the stream, played by a test."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from openlora.node.frames import AsyncFrames
from openlora.node.network.answers import Handler
from openlora.node.network.client import NetworkClient
from openlora.node.network.connection import Connection
from openlora.node.network.messages import VERSION, Announce, Command, Event, Ready
from openlora.node.network.nodes import NodeTable
from openlora.node.tasks import running
from openlora.p2p.identity import Identity
from openlora.p2p.network import PeerId
from openlora.p2p.presence.record import Adapters, Ask, Hardware, Load, Presence, Status

CommandT = TypeVar("CommandT", bound=Command)

OPERATORS = tuple(f"0x{number:040x}" for number in range(1, 20))
READY = Ready(version=VERSION, peer_id="12D3KooWfake", addresses=("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWfake",))


class FakeNetwork:
    """One client, and as many lives of its network process as a test wants."""

    def __init__(self) -> None:
        self.nodes = NodeTable(clock=lambda: 1000.0)
        self.handlers: dict[str, Handler] = {}
        self.client = NetworkClient(READY, self.nodes, self.handlers, restart_wait_s=0.2)

    @asynccontextmanager
    async def life(self, ready: Ready = READY) -> AsyncIterator["FakeLife"]:
        async with _stream() as (ours, theirs):
            life = FakeLife(AsyncFrames[Command](*theirs, Command))
            life.say(ready)
            link = await Connection.greet(AsyncFrames[Event](*ours, Event), self.nodes, self.handlers)
            async with running(link.read(), "reader"):
                await self.client.attach(link)
                yield life
                life.end()
                self.client.detach()


class FakeLife:
    def __init__(self, frames: AsyncFrames[Command]) -> None:
        self._frames = frames

    def say(self, *events: Event) -> None:
        for event in events:
            self._frames.post(event)

    async def hears(self, kind: type[CommandT]) -> CommandT:
        """The next command, which must be of this kind."""
        async with asyncio.timeout(5):
            command = await self._frames.receive()
        assert isinstance(command, kind), command
        return command

    def end(self) -> None:
        self._frames.close()


def status(queued: int = 0) -> Status:
    return Status(Hardware("cpu", 2, 4 << 30, ()), (), Adapters.of((), (), ()), Ask("1", "2"), Load(queued, 0, 4), "1")


def announcement(operator: str = OPERATORS[0], queued: int = 0) -> Announce:
    return Announce(operator=operator, hot_key=operator, binding=bytes(65), status=status(queued))


def record(name: str, operator: str, *, sequence: int = 1, expires_at: int = 1060) -> Presence:
    return Presence(
        v=1,
        chain_id=31337,
        operator=operator,
        hot_key=operator,
        binding=bytes(65),
        peer=peer_id(name),
        sequence=sequence,
        issued_at=1000,
        expires_at=expires_at,
        addresses=(),
        status=status(),
    )


def peer_id(name: str) -> PeerId:
    return Identity(name.encode().ljust(32, b"-")).peer_id


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def _stream() -> AsyncIterator[tuple[Ends, Ends]]:
    """Both ends of one stream, closed afterwards."""
    ours, theirs = socket.socketpair()
    ends = await asyncio.open_unix_connection(sock=ours), await asyncio.open_unix_connection(sock=theirs)
    try:
        yield ends
    finally:
        for _, writer in ends:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
