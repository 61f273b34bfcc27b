"""Asking: one task a source spreads the wants of all fetches, and what comes back is kept before more is read."""

import logging
from collections.abc import Iterable

import trio

from openlora.p2p.bitswap.counters import Counters
from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.line import Line
from openlora.p2p.bitswap.messages import MAX_WANTS, Message
from openlora.p2p.bitswap.messages import Want as Entry
from openlora.p2p.bitswap.tasks import DiskStore, Tasks
from openlora.p2p.bitswap.wants import Interested, Probe, Source, Want, choose
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import P2PError, PeerUnreachable, StreamLost
from openlora.p2p.network import Network, PeerId

_log = logging.getLogger(__name__)

_TICK_S = 0.25  # how often a source that owes us something is looked at


class BlockClient:
    """Owns the wants and the sources. A source that lies, stalls or goes away loses what it was asked to the others."""

    def __init__(
        self, network: Network, store: DiskStore, tasks: Tasks, limits: BitswapLimits, counters: Counters
    ) -> None:
        self._network, self._store, self._tasks = network, store, tasks
        self._limits, self._counters = limits, counters
        self._wants: dict[Cid, Want] = {}
        self._sources: dict[PeerId, Source] = {}

    # ---- what fetches call ------------------------------------------------------------------------------------------

    def want(self, cid: Cid, fetch: Interested) -> Want:
        want = self._wants.setdefault(cid, Want(cid))
        want.fetches.append(fetch)
        wake(fetch.sources.values())
        return want

    def wanted(self, cid: Cid) -> bool:
        return cid in self._wants

    def release(self, want: Want, fetch: Interested) -> None:
        """The fetch waits no longer; the last one takes the want back from those who were asked."""
        want.fetches.remove(fetch)
        if not want.fetches and self._wants.get(want.cid) is want:
            self._end(want)

    def join(self, peer: PeerId) -> Source:
        """The peer as a source of one more fetch, which gives it back with `leave`."""
        source = self._source(peer)
        source.uses += 1
        return source

    def leave(self, source: Source) -> None:
        source.uses -= 1
        source.wake.set()

    def usable(self, peer: PeerId) -> bool:
        source = self._sources.get(peer)
        return source is None or source.usable

    async def probe(self, peer: PeerId, cid: Cid) -> bool:
        """Whether the peer says that it has the block; False when it says nothing in time."""
        source = self._source(peer)
        probe = source.probes.setdefault(cid, Probe(trio.current_time()))
        source.asked(cid)
        source.wake.set()
        try:
            with trio.move_on_after(self._limits.have_timeout_s):
                await probe.answered.wait()
        finally:
            if source.probes.get(cid) is probe:
                del source.probes[cid]
        return probe.have

    def _source(self, peer: PeerId) -> Source:
        source = self._sources.get(peer)
        if source is None:
            source = self._sources[peer] = Source(peer, self._limits)
            self._tasks.nursery.start_soon(self._run_source, source)
        return source

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def allowance(self, peer: PeerId) -> int:
        """The largest message that the peer may send now."""
        source = self._sources.get(peer)
        asked = source is not None and source.was_asked_anything()
        return self._limits.message_bytes if asked else self._limits.unasked_message_bytes

    async def received(self, peer: PeerId, message: Message) -> None:
        """Every wanted block of it is durable on return."""
        source = self._sources.get(peer)
        for cid, have in message.presences:
            if source is not None:
                self._said(source, cid, have)
        for cid, block in message.blocks:
            if source is None or not source.was_asked(cid):
                self._lied(peer, source)
                return
            await self._brought(source, cid, block)

    def _said(self, source: Source, cid: Cid, have: bool) -> None:
        source.answer_probe(cid, have)
        want = source.owed.get(cid)
        if want is None or have:
            return
        want.refused_by.add(source.peer)
        self._take_back(source, want)
        source.broken_promises += 1
        if source.broken_promises >= self._limits.broken_promises:
            self._bench(source, self._limits.bench_s, "has not what it says")

    async def _brought(self, source: Source, cid: Cid, block: bytes) -> None:
        source.answer_probe(cid, True)  # some send a small block where they were asked whether they have it
        want = self._wants.get(cid)
        if want is None:
            self._counters.duplicate_blocks += 1
            return
        failure: Exception | None = None
        try:
            await self._store.put(cid, block)
        except (P2PError, OSError) as error:
            failure = error
        if self._wants.get(cid) is not want:
            return  # another's copy was faster, or nobody waits any more
        source.delivered(want)
        if failure is None:
            self._counters.fetched_blocks += 1
            self._counters.fetched_bytes += len(block)
        want.block, want.failure = (block, None) if failure is None else (None, failure)
        self._outrun(want)
        self._end(want)

    def _outrun(self, want: Want) -> None:
        """Who has sat on a block until another brought it is given a rest, so that it does not sit on the next."""
        overdue = trio.current_time() - self._limits.patience_s
        for peer, asked_at in list(want.asked.items()):
            source = self._sources.get(peer)
            if asked_at < overdue and source is not None:
                source.cancels.append(want.cid)
                rest_s = self._limits.retry_s if source.last_block_at else self._limits.unproven_retry_s
                self._bench(source, rest_s, "is slower than others")

    def _end(self, want: Want) -> None:
        del self._wants[want.cid]
        for peer in want.asked:
            source = self._sources.get(peer)
            if source is not None:
                source.owed.pop(want.cid, None)
                source.cancels.append(want.cid)
                source.wake.set()
        want.asked.clear()
        want.tell()

    def _lied(self, peer: PeerId, source: Source | None) -> None:
        self._counters.refused["unasked-block"] += 1
        self._network.penalise(peer, "unasked-block")
        if source is not None:
            self._bench(source, self._limits.bench_s, "sent what it was not asked for")

    # ---- the task of a source ---------------------------------------------------------------------------------------

    async def _run_source(self, source: Source) -> None:
        """Lives a while longer than the last use of the source, so that late answers are known for what they are."""
        while True:
            try:
                await self._talk(source)
            except (StreamLost, PeerUnreachable) as error:
                _log.debug("event=source_lost peer=%s reason=%r", source.peer, str(error))
                self._lose(source)
                continue
            except Exception:
                _log.exception("event=source_failed peer=%s", source.peer)
                self._lose(source)
                continue
            with trio.move_on_after(self._limits.asked_lately_s) as scope:
                await source.wake.wait()
            if scope.cancelled_caught and not source.busy:
                del self._sources[source.peer]
                return

    async def _talk(self, source: Source) -> None:
        """Asks and takes back, on one stream, until the source has been idle for a while."""
        line = Line(self._network, source.peer, self._limits)
        try:
            while True:
                source.wake = trio.Event()
                self._check(source)
                owed_nothing = not source.owed
                message = self._next_message(source)
                if message is not None:
                    await line.say(message, reopen=owed_nothing)
                    continue
                with trio.move_on_after(_TICK_S if source.busy else self._limits.linger_s):
                    await source.wake.wait()
                if not source.busy and not source.wake.is_set():
                    return await line.close()
        finally:
            await line.hang_up()

    def _check(self, source: Source) -> None:
        """Raises StreamLost when the peer is gone; a peer that stalls is benched."""
        if not source.owed:
            return
        if source.peer not in self._network.connected():
            raise StreamLost("the peer disconnected")
        if source.stalled(trio.current_time()):
            self._counters.refused["stalled"] += 1
            self._network.penalise(source.peer, "stalled")
            source.cancels += source.owed
            self._bench(source, self._limits.bench_s, "stalled")

    def _next_message(self, source: Source) -> Message | None:
        entries = [Entry(cid, cancel=True) for cid in source.take_cancels(MAX_WANTS)]
        for cid, probe in source.probes.items():
            if not probe.sent:
                probe.sent = True
                entries.append(Entry(cid, only_presence=True, say_missing=True))
        for want in choose(source, self._wants, self._limits.patience_s):
            source.owe(want)
            entries.append(Entry(want.cid, say_missing=True))
        return Message(wants=tuple(entries)) if entries else None

    def _lose(self, source: Source) -> None:
        self._bench(source, self._limits.retry_s, "is gone")
        source.cancels.clear()
        for probe in source.probes.values():
            probe.answered.set()

    def _bench(self, source: Source, seconds: float, why: str) -> None:
        """Asks the source for nothing for a while, and others for what it owes us."""
        _log.info("event=source_benched peer=%s for_s=%g reason=%r", source.peer, seconds, why)
        source.benched_until = trio.current_time() + seconds
        for want in list(source.owed.values()):
            self._take_back(source, want)

    def _take_back(self, source: Source, want: Want) -> None:
        source.owed.pop(want.cid, None)
        want.asked.pop(source.peer, None)
        want.tell()
        for fetch in want.fetches:
            wake(fetch.sources.values())


def wake(sources: Iterable[Source]) -> None:
    for source in sources:
        source.wake.set()
