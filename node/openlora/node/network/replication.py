"""Copies at other nodes, so that what was published outlives its publisher's machine.

The publisher asks nodes to keep a tree of blocks; a node that wants it, and has room, fetches it from the publisher and
says so when all of it is there. Nobody is asked to believe the publisher: what comes is named by its hash, and whether
a node wants it is that node's own knowledge (registered on chain, input of an open job).

On "/openlora/1/control": `Keep` → `Fetching`, again and again while it comes, then `Kept`; or a refusal.
"""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import msgspec

from openlora.node.content import BlockContent
from openlora.node.errors import ChainError, ContentError, ContentNotFound, NetworkDown, NetworkError, RequestError
from openlora.node.malformed import MALFORMED
from openlora.node.network.client import NetworkClient
from openlora.node.network.rates import PeerRates, RateLimits
from openlora.node.tasks import task_group
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import CID_CHARACTERS
from openlora.p2p.presence.record import Presence

log = logging.getLogger(__name__)

CONTROL: Final = "/openlora/1/control"
COPIES: Final = 3
MAX_ASKED: Final = 64  # nodes that one publication asks before it makes do with the copies it has
NODE_TIMEOUT_S: Final = 900.0  # for one node to fetch all of it
SILENCE_S: Final = 20.0  # a node that says nothing for so long is given up
HEARTBEAT_S: Final = 5.0
PATIENCE_S: Final = 5.0  # what presence takes to reach a newcomer
_LOOK_AGAIN_S: Final = 0.1


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="keep"):
    """Please keep all blocks under `cid`; `bytes` is their sum, a block that occurs twice counting twice."""

    cid: Annotated[str, msgspec.Meta(max_length=CID_CHARACTERS)]
    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Fetching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="fetching"):
    """It is wanted and on its way."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="kept"):
    """All of it is here."""


_request_decoder: Final = msgspec.msgpack.Decoder(Keep)
_reply_decoder: Final = msgspec.msgpack.Decoder(Fetching | Kept)


# ---- asking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replicas:
    """Where a publication's copies are. `refusals` counts the nodes that gave each reason, their own words included."""

    wanted: int
    holders: tuple[str, ...]  # peers
    refusals: Mapping[str, int]

    @property
    def enough(self) -> bool:
        return len(self.holders) >= self.wanted

    def __str__(self) -> str:
        """A plain sentence."""
        if self.enough:
            return f"{len(self.holders)} other nodes keep a copy"
        said = "; ".join(f"{count} × {reason}" for reason, count in self.refusals.items()) or "no other node is known"
        held = f"only {len(self.holders)} of the {self.wanted} copies asked for are" if self.holders else "no copy is"
        return f"published, but {held} kept by other nodes, so keep this machine reachable ({said})"


async def replicate(
    network: NetworkClient,
    cid: str,
    size_bytes: int,
    *,
    copies: int = COPIES,
    base_id: str | None = None,
    patience_s: float = PATIENCE_S,
    node_timeout_s: float = NODE_TIMEOUT_S,
) -> Replicas:
    """Asks live nodes to keep `cid`, which is in our block store and provided, until `copies` of them do.

    `size_bytes` as `BlockContent.size` counts. With `base_id` (64 hex digits) only nodes that serve it are asked. At
    most `copies` nodes fetch at once. A peer that has just joined is given `patience_s` to hear of that many nodes.
    Fewer copies are no error; the answer says why. Raises NetworkDown.
    """
    for _ in range(round(patience_s / _LOOK_AGAIN_S)):
        if len(_candidates(network, base_id)) >= copies:
            break
        await asyncio.sleep(_LOOK_AGAIN_S)
    untried = islice(_in_order(_candidates(network, base_id), cid), MAX_ASKED)
    request = msgspec.msgpack.encode(Keep(cid, size_bytes))
    holders: list[str] = []
    refusals: Counter[str] = Counter()

    async def find_keeper() -> None:
        for node in untried:  # shared: no node is asked twice
            try:
                async with asyncio.timeout(node_timeout_s):
                    await _ask(network, node, request)
            except TimeoutError:
                refusals["it did not have all of it in time"] += 1
            except NetworkDown:
                raise
            except NetworkError as refusal:
                refusals[str(refusal)] += 1
            else:
                holders.append(node.peer)
                return

    async with task_group() as group:
        for number in range(copies):
            group.create_task(find_keeper(), name=f"replica-{number}")
    replicas = Replicas(copies, tuple(holders), refusals)
    log.info("event=replicated cid=%s copies=%d wanted=%d", cid, len(holders), copies)
    return replicas


async def _ask(network: NetworkClient, node: Presence, request: bytes) -> None:
    """Returns when the node has all of it. Raises NetworkError, with the node's words where it refuses."""
    replies = network.ask(node.peer, CONTROL, request, addresses=node.addresses, timeout_s=SILENCE_S)
    async with aclosing(replies):
        async for data in replies:
            try:
                reply = _reply_decoder.decode(data)
            except MALFORMED:
                raise NetworkError("it answers in another language") from None
            if isinstance(reply, Kept):
                return
    raise NetworkError("it ended its answer early")


def _candidates(network: NetworkClient, base_id: str | None) -> Sequence[Presence]:
    others = [node for node in network.nodes() if node.peer != network.peer_id]
    return [node for node in others if base_id is None or any(model.base_id == base_id for model in node.status.models)]


def _in_order(nodes: Sequence[Presence], cid: str) -> Iterator[Presence]:
    """Rendezvous hashing: every publication has an order of its own, so that they spread evenly over the nodes."""
    return iter(sorted(nodes, key=lambda node: sha256(f"{cid}/{node.operator}".encode()).digest()))


# ---- keeping --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeeperLimits:
    concurrent: int = 2  # fetches for others at once
    fetch_timeout_s: float = NODE_TIMEOUT_S
    rates: RateLimits = field(default_factory=RateLimits)


def room(blocks: Path, quota_bytes: int, min_free_bytes: int) -> Callable[[], int]:
    """How many bytes the block store at `blocks` may still grow. The answer blocks on the disk, one `stat` a block."""

    def measure() -> int:
        free_bytes = shutil.disk_usage(blocks).free - min_free_bytes
        return max(0, min(quota_bytes - BlockStore(blocks).size(), free_bytes))

    return measure


class Keeper:
    """Answers `Keep`: `network.handle(CONTROL, keeper.answer)`.

    `wanted` says why this node wants a CID, or None. Whatever is kept counts against `room_bytes`, which is asked in a
    thread, with what is on its way already. Content that is here already is kept at once, room or not.
    """

    def __init__(
        self,
        network: NetworkClient,
        local: BlockContent,
        wanted: Callable[[str], Awaitable[str | None]],
        room_bytes: Callable[[], int],
        limits: KeeperLimits = KeeperLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network, self._local, self._wanted, self._room_bytes = network, local, wanted, room_bytes
        self._limits, self._clock = limits, clock
        self._rates = PeerRates(limits.rates, clock)
        self._coming: Counter[str] = Counter()  # bytes promised for what is being fetched, by CID

    async def answer(self, peer: str, body: bytes) -> AsyncIterator[bytes]:
        """Refuses with a RequestError: rate_limited, malformed, not_wanted, busy, no_room, too_slow, missing, refused,
        not_now."""
        self._rates.check(peer)
        try:
            keep = _request_decoder.decode(body)
        except MALFORMED:
            raise RequestError("malformed", "this is no request that the node knows") from None
        with _in_plain_words(keep):
            reason = await self._wanted(keep.cid)
            if reason is None:
                raise RequestError("not_wanted", "the node has no use for it")
            if not await self._is_here(keep.cid):
                async with aclosing(self._fetch(peer, keep)) as progress:
                    async for reply in progress:
                        yield reply
            await self._network.provide([keep.cid])
        log.info("event=kept cid=%s bytes=%d peer=%s reason=%r", keep.cid, keep.bytes, peer, reason)
        yield msgspec.msgpack.encode(Kept())

    async def _is_here(self, cid: str) -> bool:
        try:
            await self._local.size(cid)
        except ContentNotFound:
            return False
        return True

    async def _fetch(self, peer: str, keep: Keep) -> AsyncGenerator[bytes, None]:
        """Yields now and then while it comes."""
        room_bytes = await asyncio.to_thread(self._room_bytes)
        if keep.cid in self._coming or len(self._coming) >= self._limits.concurrent:
            raise RequestError("busy", "the node is fetching other content; ask again later")
        if keep.bytes > room_bytes - self._coming.total():
            raise RequestError("no_room", "the node has no room for it")
        self._coming[keep.cid] = keep.bytes
        fetch = asyncio.ensure_future(self._network.fetch(keep.cid, max_bytes=keep.bytes, whole=True, hints=[peer]))
        deadline_s = self._clock() + self._limits.fetch_timeout_s
        try:
            while not (await asyncio.wait([fetch], timeout=HEARTBEAT_S))[0]:
                if self._clock() > deadline_s:
                    raise RequestError("too_slow", "the node could not fetch it in time")
                yield msgspec.msgpack.encode(Fetching())
            fetch.result()
        finally:
            del self._coming[keep.cid]
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)


@contextmanager
def _in_plain_words(keep: Keep) -> Iterator[None]:
    """What goes wrong here, without the addresses and paths that our own errors name."""
    try:
        yield
    except ContentNotFound:
        raise RequestError("missing", "the node could not find all of it") from None
    except ContentError as error:
        log.warning("event=not_kept cid=%s reason=%r", keep.cid, str(error))
        raise RequestError("refused", "it is not what its CID and size say, or cannot be stored") from None
    except (ChainError, NetworkDown) as error:
        log.warning("event=not_kept cid=%s reason=%r", keep.cid, str(error))
        raise RequestError("not_now", "the node cannot look into it now; ask again later") from None
