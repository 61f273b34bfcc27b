"""The network process at work for one agent: commands in, events out."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from openlora.node.network.asked import AskedOfUs
from openlora.node.network.asking import RPC_LIMITS, AskedByUs
from openlora.node.network.fetching import Fetching
from openlora.node.network.messages import (
    APPLICATION_PROTOCOLS,
    VERSION,
    Announce,
    Answer,
    AnswerEnd,
    Ask,
    Cancel,
    Command,
    Connect,
    Connected,
    ConnectFailed,
    Fetch,
    GetStats,
    Gone,
    Provide,
    Ready,
    Seen,
    Shutdown,
    Stats,
    Taken,
    Trust,
)
from openlora.node.network.outbox import Outbox
from openlora.node.network.providing import Providing
from openlora.node.network.trio_frames import TrioFrames
from openlora.p2p import rpc
from openlora.p2p.bitswap.service import Bitswap
from openlora.p2p.errors import P2PError
from openlora.p2p.network import Network
from openlora.p2p.presence.announcer import Announcer, Membership
from openlora.p2p.presence.book import PresenceBook
from openlora.p2p.presence.service import PresenceService

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S: Final = 20.0
_FAREWELL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Wire:
    """Figures of the network itself since its start."""

    bytes_in: int = 0
    bytes_out: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """What a place in the network is made of."""

    network: Network
    bitswap: Bitswap
    fetching: Fetching
    trusted: dict[str, str]  # hot key → operator: whose records `book` takes
    book: PresenceBook
    presence: PresenceService
    announcer: Announcer
    wire: Callable[[], Wire]


class NetworkService:
    """`run` serves the agent at the other end of `frames` until it says Shutdown or closes."""

    def __init__(self, frames: TrioFrames[Command], peer: Peer) -> None:
        self._frames, self._peer = frames, peer
        self._outbox = Outbox()
        self._asked = AskedOfUs(self._outbox, lambda: {record.peer for record in peer.book.live()})
        self._asking = AskedByUs(peer.network, self._outbox)
        self._providing = Providing(peer.network)
        self._scopes: dict[int, trio.CancelScope] = {}  # of what the agent may cancel

    async def run(self) -> None:
        """Raises FrameError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._peer.bitswap.run)
            nursery.start_soon(self._peer.presence.run)
            nursery.start_soon(self._providing.run)
            nursery.start_soon(self._tell_changes)
            for protocol in APPLICATION_PROTOCOLS:
                rpc.serve(self._peer.network, protocol, partial(self._asked.answer, protocol), RPC_LIMITS)
            nursery.start_soon(self._write, nursery.cancel_scope)
            self._outbox.post(self._ready())
            while (command := await self._frames.receive()) is not None and not isinstance(command, Shutdown):
                self._obey(command, nursery)
            if command is not None:
                await self._say_farewell()
            nursery.cancel_scope.cancel()

    async def _say_farewell(self) -> None:
        """Others then drop us in seconds instead of a minute. Best effort, since an agent that ends waits for it."""
        with trio.move_on_after(_FAREWELL_S):
            try:
                await self._peer.presence.farewell()
            except OSError as error:
                log.warning("event=no_farewell reason=%r", str(error))
            await trio.sleep_forever()  # it is on its way, and nothing tells when it has arrived

    def _obey(self, command: Command, nursery: trio.Nursery) -> None:
        match command:
            case Fetch() | Ask() | Connect():
                self._scopes[command.id] = scope = trio.CancelScope()
                nursery.start_soon(self._work, command, scope)
            case Cancel(id=number):
                if (started := self._scopes.get(number)) is not None:  # else it has just ended
                    started.cancel()
            case Taken():
                self._asking.taken(command)
            case Answer():
                self._asked.answered(command)
            case AnswerEnd():
                self._asked.ended(command)
            case Announce():
                self._peer.announcer.join(Membership(command.operator, command.hot_key, command.binding))
                self._peer.announcer.announce(command.status)
            case Trust(operators=operators):
                self._trust(operators)
            case Provide(cids=cids):
                self._providing.add(cids)
            case GetStats(id=number):
                self._outbox.post(self._stats(number))

    def _trust(self, operators: Mapping[str, str]) -> None:
        self._peer.trusted.clear()
        self._peer.trusted.update(operators)
        self._peer.presence.resync()

    async def _work(self, command: Fetch | Ask | Connect, scope: trio.CancelScope) -> None:
        with scope:
            match command:
                case Fetch():
                    self._outbox.post(await self._peer.fetching.fetch(command))
                case Ask():
                    await self._asking.ask(command)
                case Connect():
                    self._outbox.post(await self._connect(command))
        del self._scopes[command.id]

    async def _connect(self, connect: Connect) -> Connected | ConnectFailed:
        try:
            with trio.fail_after(_CONNECT_TIMEOUT_S):
                peer = await self._peer.network.connect(connect.addresses)
        except P2PError as error:
            return ConnectFailed(id=connect.id, message=str(error))
        except trio.TooSlowError:
            return ConnectFailed(id=connect.id, message=f"nobody answered within {_CONNECT_TIMEOUT_S:g} s")
        except Exception:
            log.exception("event=connect_failed")
            return ConnectFailed(id=connect.id, message="the network process failed; its log says how")
        return Connected(id=connect.id, peer=peer)

    async def _tell_changes(self) -> None:
        async for operator, record in self._peer.presence.changes():
            await self._outbox.send(Gone(operator=operator) if record is None else Seen(record=record))

    async def _write(self, serving: trio.CancelScope) -> None:
        try:
            await self._outbox.run(self._frames)
        except trio.BrokenResourceError:  # the agent is gone, and nobody is left to serve
            serving.cancel()

    def _ready(self) -> Ready:
        network = self._peer.network
        return Ready(version=VERSION, peer_id=network.peer_id, addresses=tuple(network.addresses))

    def _stats(self, number: int) -> Stats:
        blocks = self._peer.bitswap.counters
        wire = self._peer.wire()
        # A misdeed may be counted where it was found and again where it was punished: the larger count is true.
        refused = self._asked.refused | blocks.refused | self._peer.book.refused | Counter(wire.refused)
        return Stats(
            id=number,
            peers=len(self._peer.network.connected()),
            bytes_in=wire.bytes_in,
            bytes_out=wire.bytes_out,
            blocks_fetched=blocks.fetched_blocks,
            block_bytes_fetched=blocks.fetched_bytes,
            blocks_served=blocks.served_blocks,
            block_bytes_served=blocks.served_bytes,
            refused=dict(refused),
        )
