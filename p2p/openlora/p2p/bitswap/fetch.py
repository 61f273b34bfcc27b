"""One fetch: a tree of blocks is walked from its root, and what the store lacks is wanted of peers."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from openlora.p2p.bitswap.client import BlockClient, wake
from openlora.p2p.bitswap.limits import LINK_ALLOWANCE_BYTES, BitswapLimits
from openlora.p2p.bitswap.tasks import DiskStore
from openlora.p2p.bitswap.tree import Content, Tree
from openlora.p2p.bitswap.wants import Source, Want
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.unixfs import parse_node
from openlora.p2p.errors import BlockMissing, OverBudget, P2PError
from openlora.p2p.network import Network, PeerId


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is in the store now: the distinct blocks of the tree, and their bytes, wherever they came from."""

    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Arrived:
    cid: Cid
    block_bytes: int
    content: Content


class Fetch:
    """`sources` are the peers that said they have some of it. Its tasks run in `tasks`, which the caller cancels."""

    def __init__(
        self,
        network: Network,
        client: BlockClient,
        store: DiskStore,
        limits: BitswapLimits,
        hints: Sequence[PeerId],
        tasks: trio.Nursery,
    ) -> None:
        self.sources: dict[PeerId, Source] = {}
        self._network, self._client, self._store = network, client, store
        self._limits, self._hints, self._tasks = limits, hints, tasks
        self._searching = trio.Lock()
        self._probing: set[PeerId] = set()
        self._probed = trio.Event()

    async def one(self, root: Cid, max_bytes: int) -> Fetched:
        block = await self._obtain(root)
        if len(block) > max_bytes:
            raise OverBudget(f"a block of {len(block)} bytes; {max_bytes} are allowed")
        return Fetched(1, len(block))

    async def tree(self, root: Cid, max_bytes: int) -> Fetched:
        """Depth first, a bounded number of blocks at once, until the last has arrived or the tree is refused."""
        max_links = self._limits.links_base + max_bytes // LINK_ALLOWANCE_BYTES
        tree = Tree(root, max_bytes=max_bytes, max_links=max_links)
        send, receive = trio.open_memory_channel[_Arrived | Exception](self._limits.lookahead)
        known, running = [root], 0
        while not tree.complete:
            while known and running < self._limits.lookahead:
                running += 1
                self._tasks.start_soon(self._deliver, known.pop(), send)
            arrived = await receive.receive()
            running -= 1
            if isinstance(arrived, Exception):
                raise arrived
            known += reversed(tree.add(arrived.cid, arrived.block_bytes, arrived.content))
        return Fetched(tree.blocks, tree.bytes)

    def leave(self) -> None:
        for source in self.sources.values():
            self._client.leave(source)

    async def _deliver(self, cid: Cid, send: "trio.MemorySendChannel[_Arrived | Exception]") -> None:
        try:
            block = await self._obtain(cid)
            content = len(block) if cid.codec == Codec.RAW else parse_node(block)
            await send.send(_Arrived(cid, len(block), content))
        except (P2PError, OSError) as error:
            await send.send(error)

    async def _obtain(self, cid: Cid) -> bytes:
        """The block, durable in the store: from there, or else from a peer."""
        if not self._client.wanted(cid):
            with suppress(BlockMissing):
                return await self._store.get(cid)
        want = self._client.want(cid, self)
        try:
            while want.block is None:
                if want.failure is not None:
                    raise want.failure
                if self._expected(want):
                    with trio.move_on_after(self._limits.again_s):  # a source may fall out of use without a word
                        await want.changed.wait()
                else:
                    await self._search(want)
            return want.block
        finally:
            self._client.release(want, self)

    # ---- finding sources --------------------------------------------------------------------------------------------

    def _expected(self, want: Want) -> bool:
        """It has come, or somebody is asked for it, or will be."""
        if want.block is not None or want.failure is not None or want.asked:
            return True
        return any(source.usable and want.may_come_from(source) for source in self.sources.values())

    async def _search(self, want: Want) -> None:
        """Returns when somebody should have the block. Raises BlockMissing when nobody is found in time."""
        with trio.move_on_after(self._limits.missing_timeout_s):
            async with self._searching:  # one at a time: what one finds the others want, too
                while not self._expected(want):
                    await self._look_around(want)
        if not self._expected(want):
            raise BlockMissing(f"no peer has the block {want.cid}")

    async def _look_around(self, want: Want) -> None:
        """Asks the peers we know, and then those that the DHT names."""
        self._probe(want, [*self._hints, *self.sources, *self._network.connected()])
        await self._probes_end(want)
        if not self._expected(want):
            self._probe(want, await self._network.providers(want.cid, self._limits.peers_per_search))
            await self._probes_end(want)
        if not self._expected(want):
            await trio.sleep(self._limits.again_s)

    def _probe(self, want: Want, peers: Iterable[PeerId]) -> None:
        chosen = [peer for peer in dict.fromkeys(peers) if peer not in self._probing and self._client.usable(peer)]
        for peer in chosen[: self._limits.peers_per_search - len(self._probing)]:
            self._probing.add(peer)
            self._tasks.start_soon(self._probe_one, want, peer)

    async def _probe_one(self, want: Want, peer: PeerId) -> None:
        if await self._client.probe(peer, want.cid):
            want.refused_by.discard(peer)
            if peer not in self.sources:
                self.sources[peer] = self._client.join(peer)
            wake(self.sources.values())
        self._probing.discard(peer)
        self._probed.set()

    async def _probes_end(self, want: Want) -> None:
        """Or one of them has been answered well."""
        with trio.move_on_after(self._limits.again_s):
            while self._probing and not self._expected(want):
                self._probed = trio.Event()
                await self._probed.wait()
