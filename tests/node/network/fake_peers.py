"""Network clients that reach each other within one process, with the methods and errors of `NetworkClient`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from openlora.node.content import tree_bytes
from openlora.node.errors import ContentError, ContentNotFound, NetworkError, OpenLoraError, PeerRefused
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import BlockMissing
from openlora.p2p.identity import Identity
from openlora.p2p.network import PeerId
from openlora.p2p.presence.record import Adapters, Ask, Hardware, Load, Model, Presence, Status

Handler = Callable[[str, bytes], AsyncIterator[bytes]]
BASE_ID = "01" * 32


@dataclass
class FakePeers:
    """All peers, and the presence records that every one of them sees."""

    folder: Path
    peers: dict[str, "FakePeer"] = field(default_factory=dict)
    records: list[Presence] = field(default_factory=list)

    def peer(
        self, name: str, operator: str | None = None, *, staked: bool = True, base_id: str = BASE_ID
    ) -> "FakePeer":
        """A peer with a block store of its own; a staked one is a node that all see."""
        peer_id = Identity(sha256(name.encode()).digest()).peer_id
        network = self.peers[peer_id] = FakePeer(self, peer_id, self.folder / name)
        if staked:
            address = operator or "0x" + sha256(name.encode()).hexdigest()[:40]
            self.records.append(presence(peer_id, address.lower(), base_id))
        return network


class FakePeer:
    def __init__(self, peers: FakePeers, peer_id: PeerId, folder: Path) -> None:
        self.peer_id = peer_id
        self.folder = folder
        self.blocks = BlockStore(folder)
        self.provided: list[str] = []
        self.asked: list[str] = []  # peers, in order
        self.fetches = 0
        self.fetching = asyncio.Event()
        self.gate: asyncio.Event | None = None  # fetches wait for it
        self.died = asyncio.Event()
        self._peers = peers
        self._handlers: dict[str, Handler] = {}

    def nodes(self) -> tuple[Presence, ...]:
        return tuple(self._peers.records)

    def handle(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    async def provide(self, cids: Sequence[str]) -> None:
        self.provided += cids

    async def fetch(self, cid: str, *, max_bytes: int, whole: bool = False, hints: Sequence[str] = ()) -> None:
        assert whole
        self.fetches += 1
        self.fetching.set()
        if self.gate is not None:
            await self.gate.wait()

        def get(wanted: Cid) -> bytes:
            for peer in hints:
                if self._peers.peers[peer].blocks.has(wanted):
                    block = self._peers.peers[peer].blocks.get(wanted)
                    self.blocks.put(wanted, block)
                    return block
            raise BlockMissing(f"no peer has {wanted}")

        try:
            if tree_bytes(Cid.parse(cid), get) > max_bytes:
                raise ContentError("the content is larger than allowed")
        except BlockMissing as error:
            raise ContentNotFound(str(error)) from None

    async def ask(
        self, peer: str, protocol: str, body: bytes, *, addresses: Sequence[str] = (), timeout_s: float = 30.0
    ) -> AsyncGenerator[bytes, None]:
        self.asked.append(peer)
        other = self._peers.peers[peer]
        if other.died.is_set() or protocol not in other._handlers:
            raise NetworkError("the peer is not reached")
        replies: Any = other._handlers[protocol](self.peer_id, body)
        try:
            while True:
                try:
                    data = await _unless(other.died, anext(replies), timeout_s)
                except StopAsyncIteration:
                    return
                except OpenLoraError as refusal:
                    if isinstance(refusal, NetworkError):
                        raise
                    raise PeerRefused(str(refusal)) from None
                yield data
        finally:
            await replies.aclose()


async def _unless(died: asyncio.Event, reply: Any, timeout_s: float) -> bytes:
    """The reply. Raises NetworkError if the peer dies or is silent."""
    coming, death = asyncio.ensure_future(reply), asyncio.ensure_future(died.wait())
    try:
        await asyncio.wait([coming, death], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            data: bytes = coming.result()
            return data
        raise NetworkError("the peer went away" if died.is_set() else f"the peer was silent for {timeout_s:g} s")
    finally:
        coming.cancel()
        death.cancel()
        await asyncio.wait([coming, death])


def presence(peer: PeerId, operator: str, base_id: str) -> Presence:
    now = int(time.time())
    return Presence(
        v=1,
        chain_id=31337,
        operator=operator,
        hot_key="0x" + "07" * 20,
        binding=bytes(65),
        peer=peer,
        sequence=1,
        issued_at=now,
        expires_at=now + 60,
        addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}",),
        status=Status(
            hardware=Hardware("a processor", 2, 1 << 30, ()),
            models=(Model(base_id, "tiny", "float32", 512),),
            adapters=Adapters.of([], [], []),
            ask=Ask("0", "0"),
            load=Load(0, 0, 8),
            version="1",
        ),
    )
