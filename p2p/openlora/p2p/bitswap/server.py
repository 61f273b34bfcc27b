"""Serving: every peer has a bounded queue of wants and one task that answers them, one block a message.

Answers go on a stream of our own (other implementations read nothing on the stream that their wants went out on). The
next block is read when the peer has taken the last, so a peer holds one block of our memory, whatever it asks for.
"""

import logging
from dataclasses import dataclass, field
from itertools import islice

import trio

from openlora.p2p.bitswap.counters import Counters
from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.line import Line
from openlora.p2p.bitswap.messages import Message, Want
from openlora.p2p.bitswap.tasks import DiskStore, Tasks
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import BlockMissing, PeerUnreachable, StreamLost
from openlora.p2p.network import Network, PeerId

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Queue:
    """What one peer wants, in the order it asked."""

    blocks: dict[Cid, Want] = field(default_factory=dict)
    presences: dict[Cid, Want] = field(default_factory=dict)
    filled: trio.Event = field(default_factory=trio.Event)

    def __len__(self) -> int:
        return len(self.blocks) + len(self.presences)

    def drop(self, cid: Cid) -> None:
        self.blocks.pop(cid, None)
        self.presences.pop(cid, None)

    def add(self, want: Want) -> None:
        if not want.only_presence:
            self.presences.pop(want.cid, None)
            self.blocks[want.cid] = want
        elif want.cid not in self.blocks:
            self.presences[want.cid] = want
        self.filled.set()


class BlockServer:
    """Owns the queues. A peer that reads too slowly, or is gone, loses its queue and nothing else happens."""

    def __init__(
        self, network: Network, store: DiskStore, tasks: Tasks, limits: BitswapLimits, counters: Counters
    ) -> None:
        self._network, self._store, self._tasks = network, store, tasks
        self._limits, self._counters = limits, counters
        self._queues: dict[PeerId, _Queue] = {}

    def wanted(self, peer: PeerId, message: Message) -> None:
        """Takes up a peer's wantlist. What exceeds its queue is left out: it may ask again."""
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = _Queue()
            self._tasks.nursery.start_soon(self._serve, peer, queue)
        if message.full:
            queue.blocks.clear()
            queue.presences.clear()
        for want in message.wants:
            if want.cancel:
                queue.drop(want.cid)
            elif len(queue) < self._limits.wants_per_peer:
                queue.add(want)
            else:
                self._counters.refused["too-many-wants"] += 1

    async def _serve(self, peer: PeerId, queue: _Queue) -> None:
        """Answers until the peer has wanted nothing for a while, or is lost: then so are its wants."""
        line = Line(self._network, peer, self._limits)
        try:
            rested = False
            while queue or (rested := await self._filled(queue)):
                message = await self._next_answer(queue)
                if message is not None:
                    await line.say(message, reopen=rested)
                    self._count(message)
                    rested = False
            del self._queues[peer]  # before the next await: what the peer wants from now on is another task's
            await line.close()
        except (StreamLost, PeerUnreachable) as error:
            self._counters.refused["answer-not-taken"] += 1
            _log.debug("event=serving_stopped peer=%s reason=%r", peer, str(error))
        except Exception:
            _log.exception("event=serving_failed peer=%s", peer)
        finally:
            if self._queues.get(peer) is queue:
                del self._queues[peer]
            await line.hang_up()

    async def _filled(self, queue: _Queue) -> bool:
        """Waits a while for the next want."""
        queue.filled = trio.Event()
        with trio.move_on_after(self._limits.linger_s):
            await queue.filled.wait()
        return len(queue) > 0

    def _count(self, message: Message) -> None:
        for _, block in message.blocks:
            self._counters.served_blocks += 1
            self._counters.served_bytes += len(block)

    async def _next_answer(self, queue: _Queue) -> Message | None:
        """The presences that were asked for, or else one block."""
        if queue.presences:
            wants = list(islice(queue.presences.values(), self._limits.presences_per_message))
            for want in wants:
                del queue.presences[want.cid]
            present = await self._store.which([want.cid for want in wants])
            said = tuple(
                (want.cid, have) for want, have in zip(wants, present, strict=True) if have or want.say_missing
            )
            return Message(presences=said) if said else None
        want = queue.blocks.pop(next(iter(queue.blocks)))
        try:
            block = await self._store.get(want.cid)
        except BlockMissing:
            return Message(presences=((want.cid, False),)) if want.say_missing else None
        return Message(blocks=((want.cid, block),))
