"""The peer-to-peer network as the rest of the node sees it: asyncio, typed errors, and calls that outlive a restart of
the network process.

`Connection` is one life of that process; `NetworkClient` is what callers hold. It uses the present connection, waits a
bounded time for the next one, and tells it again what it must know: whom to trust, what to announce and to provide.
"""

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from openlora.node.errors import NetworkDown
from openlora.node.network.answers import Handler
from openlora.node.network.connection import Connection
from openlora.node.network.messages import (
    APPLICATION_PROTOCOLS,
    MAX_REQUEST_BYTES,
    Announce,
    Command,
    Fetched,
    Provide,
    Ready,
    Stats,
    Trust,
)
from openlora.node.network.nodes import NodeTable
from openlora.node.supervise import Current
from openlora.p2p.presence.record import Presence

log = logging.getLogger(__name__)

_FETCH_LIVES: Final = 16  # network processes that one fetch may see end before it is given up: it may be what ends them
_CIDS_A_FRAME: Final = 1024


class NetworkClient:
    """Finds nodes, fetches content and talks to peers, through whichever network process is alive.

    While there is none, a call waits up to `restart_wait_s` for the next and then raises NetworkDown. Whoever owns the
    process calls `attach` and `detach`.
    """

    def __init__(
        self, ready: Ready, nodes: NodeTable, handlers: dict[str, Handler], restart_wait_s: float = 30.0
    ) -> None:
        self._ready, self._nodes, self._handlers = ready, nodes, handlers
        self._announcement: Announce | None = None
        self._trust = Trust(operators={})
        self._provided: dict[str, None] = {}
        self._current: Current[Connection] = Current(restart_wait_s, _restarting)

    @property
    def peer_id(self) -> str:
        return self._ready.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """Where others can dial us: multiaddrs that end in /p2p/<peer id>. They may change with a restart."""
        return self._ready.addresses

    @property
    def alive(self) -> bool:
        return self._current.alive

    def nodes(self) -> tuple[Presence, ...]:
        """The newest record of every trusted node that is alive."""
        return self._nodes.live()

    async def announce(self, announcement: Announce) -> None:
        """From now on others hear this of us, until the next call; returns without waiting for them."""
        self._announcement = announcement
        await self._tell(announcement)

    async def trust(self, operators: Mapping[str, str]) -> None:
        """From now on only these nodes' presence counts: hot key → operator, addresses in lower case."""
        self._trust = Trust(operators=dict(operators))
        self._nodes.keep(frozenset(operators.values()))
        await self._tell(self._trust)

    async def provide(self, cids: Sequence[str]) -> None:
        """Tells the DHT that we have these, now and for as long as the node runs; returns without waiting for it."""
        new = [cid for cid in cids if cid not in self._provided]
        self._provided |= dict.fromkeys(new)
        await self._tell(*_provides(new))

    async def fetch(self, cid: str, *, max_bytes: int, whole: bool = False, hints: Sequence[str] = ()) -> Fetched:
        """Brings a block, or with `whole` all blocks under it, into the block store: all of it is there on return.

        `max_bytes` bounds the bytes of all blocks. `hints`: peers that probably have it. What has come is kept, also by
        a call that is cancelled: the next one resumes. Raises ContentNotFound if no peer has it, ContentError if it is
        not what it should be or does not fit, NetworkDown.
        """
        for _ in range(_FETCH_LIVES):
            connection = await self._current.get()
            try:
                return await connection.fetch(cid, max_bytes=max_bytes, whole=whole, hints=hints)
            except NetworkDown as error:
                log.warning("event=fetch_interrupted cid=%s reason=%r", cid, str(error))
        raise NetworkDown(f"the network process ended {_FETCH_LIVES} times while it fetched {cid}")

    async def ask(
        self, peer: str, protocol: str, body: bytes, *, addresses: Sequence[str] = (), timeout_s: float = 30.0
    ) -> AsyncGenerator[bytes, None]:
        """The replies of a peer to one request of at most 16 KiB, as they come.

        `addresses`: where to dial it, if it may not be connected. `timeout_s` bounds each wait for it. Closing or
        cancelling the generator ends the request at the peer too. Raises PeerRefused with the peer's own words,
        NetworkError when it is not reached, falls silent or leaves, NetworkDown. It is not repeated.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request of {len(body)} bytes; the limit is {MAX_REQUEST_BYTES}")
        connection = await self._current.get()
        async with aclosing(connection.ask(peer, addresses, protocol, body, timeout_s)) as replies:
            async for data in replies:
                yield data

    def handle(self, protocol: str, handler: Handler) -> None:
        """Answers every request of a peer for `protocol`, one of APPLICATION_PROTOCOLS, with what `handler` yields.

        A handler that raises an OpenLoraError refuses with its sentence; one whose peer has left is cancelled.
        """
        if protocol not in APPLICATION_PROTOCOLS:
            raise ValueError(f"{protocol} is none of {', '.join(APPLICATION_PROTOCOLS)}")
        self._handlers[protocol] = handler

    async def connect(self, addresses: Sequence[str]) -> str:
        """Dials the addresses, all of one peer; its peer id. Raises NetworkError if none answers."""
        return await (await self._current.get()).connect(addresses)

    async def stats(self) -> Stats:
        """Figures since the network process began."""
        return await (await self._current.get()).stats()

    async def attach(self, link: Connection) -> None:
        """Use `link`, which is being read, once it has been told what its predecessor knew."""
        link.post(self._trust)
        if self._announcement is not None:
            link.post(self._announcement)
        for provide in _provides(list(self._provided)):
            link.post(provide)
        self._ready = link.ready
        self._current.set(link)  # not a moment later: whoever tells more now tells `link`

    def detach(self) -> None:
        self._current.clear()

    async def _tell(self, *commands: Command) -> None:
        """Nothing, while there is no network process: the next one is told when it is attached."""
        for command in commands:
            if (link := self._current.link) is not None:
                await link.tell(command)


def _restarting() -> NetworkDown:
    return NetworkDown("the network process is restarting; try again later")


def _provides(cids: Sequence[str]) -> Iterator[Provide]:
    return (Provide(cids=tuple(cids[at : at + _CIDS_A_FRAME])) for at in range(0, len(cids), _CIDS_A_FRAME))
