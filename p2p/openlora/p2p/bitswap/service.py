"""Bitswap 1.2 over the network: serves the blocks of a store, and fetches into it."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from openlora.p2p.bitswap.client import BlockClient
from openlora.p2p.bitswap.counters import Counters
from openlora.p2p.bitswap.fetch import Fetch, Fetched
from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.messages import PROTOCOLS, MessageReader, decode_message
from openlora.p2p.bitswap.server import BlockServer
from openlora.p2p.bitswap.tasks import DiskStore, Tasks
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import ContentRefused, P2PError, StreamRefused
from openlora.p2p.limits import TokenBucket
from openlora.p2p.network import Network, PeerId, Stream

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """A peer's messages are taken in one at a time, however many streams it sends them on."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    streams: int = 0


class Bitswap:
    """Everything in `blocks` is public: any peer may have it. What is fetched is durable block by block, so that a
    fetch that was killed resumes; it loses the blocks under way, which on a short path is one for each peer."""

    def __init__(self, network: Network, blocks: BlockStore, limits: BitswapLimits | None = None) -> None:
        self.counters = Counters()
        self._network, self._limits = network, limits or BitswapLimits()
        self._tasks, self._store = Tasks(), DiskStore(blocks)
        self._server = BlockServer(network, self._store, self._tasks, self._limits, self.counters)
        self._client = BlockClient(network, self._store, self._tasks, self._limits, self.counters)
        self._turns: dict[PeerId, _Turn] = {}
        self._paces: OrderedDict[PeerId, TokenBucket] = OrderedDict()

    @property
    def running(self) -> bool:
        return self._tasks.started.is_set()

    async def run(self) -> None:
        """Serves until cancelled. Fetches wait until it has begun."""
        async with self._tasks.running():
            for protocol in PROTOCOLS:
                self._network.handle(protocol, self._converse)
            await trio.sleep_forever()

    async def fetch(self, root: Cid, *, max_bytes: int, whole: bool, hints: Sequence[PeerId] = ()) -> Fetched:
        """Brings the block `root`, or (`whole`) the file or folder under it, into the store.

        Peers in `hints` and connected ones are asked first, then those that the DHT names. `max_bytes` bounds the
        distinct blocks' bytes, and the sum in which a block counts each time the tree names it. Raises BlockMissing
        when nobody is found who has a block, ContentRefused when the tree must not be used, StoreFull or OSError as
        the store does.
        """
        await self._tasks.started.wait()
        failure: Exception | None = None
        async with trio.open_nursery() as tasks:
            fetch = Fetch(self._network, self._client, self._store, self._limits, hints, tasks)
            try:
                return await (fetch.tree(root, max_bytes) if whole else fetch.one(root, max_bytes))
            except (P2PError, OSError) as error:
                failure = error
            finally:
                fetch.leave()
                tasks.cancel_scope.cancel()
        raise failure  # here, since the nursery would wrap it

    async def _converse(self, stream: Stream) -> None:
        """Takes in one stream of a peer's messages until it ends."""
        peer = stream.peer
        turn = self._turns.setdefault(peer, _Turn())
        turn.streams += 1
        try:
            reader = MessageReader(stream)
            while await self._take_message(peer, reader, turn.lock):
                pass
            await stream.close()
        except (ContentRefused, StreamRefused) as error:
            self._refuse(peer, "bitswap-message", error)
            await stream.reset()
        finally:
            turn.streams -= 1
            if not turn.streams:
                del self._turns[peer]

    async def _take_message(self, peer: PeerId, reader: MessageReader, lock: trio.Lock) -> bool:
        with trio.move_on_after(self._limits.idle_timeout_s) as scope:
            length = await reader.length()
        if scope.cancelled_caught or length is None:
            return False
        allowance = self._client.allowance(peer)
        if length > allowance:
            raise StreamRefused(f"a message of {length} bytes; the limit is {allowance}")
        async with lock:
            with trio.move_on_after(self._limits.message_timeout_s) as scope:
                body = await reader.body(length)
            if scope.cancelled_caught:
                raise StreamRefused(f"a message of {length} bytes took more than {self._limits.message_timeout_s:g} s")
            message = decode_message(body)
            if message.wants or message.full:
                self._server.wanted(peer, message)
            await self._client.received(peer, message)
            if not message.blocks:  # those were asked for, or are punished
                await trio.sleep(self._pace(peer).take(length))
        return True

    def _pace(self, peer: PeerId) -> TokenBucket:
        """What the peer may say unasked: a list of wants is made faster than it is taken in."""
        pace = self._paces.pop(peer, None) or TokenBucket(self._limits.unasked_bytes_per_s, self._limits.unasked_bytes)
        self._paces[peer] = pace
        if len(self._paces) > self._limits.paced_peers:
            self._paces.popitem(last=False)
        return pace

    def _refuse(self, peer: PeerId, code: str, error: P2PError) -> None:
        self.counters.refused[code] += 1
        self._network.penalise(peer, code)
        _log.debug("event=message_refused peer=%s reason=%r", peer, str(error))
