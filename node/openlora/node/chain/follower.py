"""From the journal's cursor to the chain's head: every log of our contracts, in order, once per view of the chain.

Far behind the head, ranges of blocks are read; near it, one block at a time and by hash, so that a reorganisation can
not slip between a header and its logs. Servers may have a block before they have its logs, or never have them all: what
was read one by one is looked at once more when it is `live_blocks` deep.

Each batch is applied in the journal transaction that moves the cursor past it: after a crash both have happened or
neither has.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import count

from openlora.contracts import Event, decode_log
from openlora.node.chain.client import ChainClient
from openlora.node.chain.types import Block, Log
from openlora.node.errors import ChainError, JournalError, JournalUnwritable, RpcBehind, RpcDown, RpcError
from openlora.node.job import BlockRef
from openlora.node.journal import Journal

log = logging.getLogger(__name__)

LIVE_BLOCKS = 64  # no reorganisation is expected to be deeper; one that is, is survived all the same
MAX_RANGE = 4096  # blocks of one eth_getLogs
REVIEW_BLOCKS = 8  # of the second look's eth_getLogs: some servers take no more than 10
PATIENCE_STEPS = 10  # with a server whose answers contradict each other, before another is asked
MAX_LOGS = 256  # of one batch of several blocks: decoding and recording one takes 0.4 ms of the event loop


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An event and where it happened."""

    event: Event
    log: Log

    @property
    def block(self) -> BlockRef:
        return self.log.block


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step changes. Either `unwound`: blocks above `upto` are no longer on the chain, or held more than was
    shown of them, and the journal has taken back what they caused; or the events of the blocks after the last batch, up
    to and including `upto`."""

    upto: BlockRef
    events: tuple[Occurrence, ...]
    head: Block  # of the chain, when the batch was read
    unwound: bool = False
    logs: int | None = None  # of ours, in a block that was read by itself


class Follower:
    """Reads the logs of `addresses`, from `start_block` (that of the deployment) on a fresh journal.

    Blocks nearer to the head than `live_blocks` are read one by one, older ones `max_range` at a time. Of the former,
    every server is asked again for `REVIEW_BLOCKS` at a time, once they are that deep; if one has more logs of the very
    same blocks, they are read anew. That costs a request for eight blocks and server. It finds no log that all servers
    keep back twice, nor one of a block that was read in a range, or more than 256 blocks before the second look.
    """

    def __init__(
        self,
        client: ChainClient,
        journal: Journal,
        addresses: Sequence[str],
        start_block: int,
        *,
        poll_s: float = 0.5,
        live_blocks: int = LIVE_BLOCKS,
        max_range: int = MAX_RANGE,
    ) -> None:
        self._client = client
        self._journal = journal
        self._addresses = list(addresses)
        self._start_block = start_block
        self._poll_s = poll_s
        self._live_blocks = live_blocks
        self._max_range = max_range
        self._range = max_range
        self._doubts = client.doubts  # as of the last step

    async def follow(self, apply: Callable[[Batch], None]) -> AsyncIterator[Batch]:
        """Applies batches for ever and yields each one after it is on disk.

        `apply` runs inside the journal transaction that moves the cursor: it records, does not await, and on an error
        nothing has happened. Whoever must react (wake a worker) does so in the loop's body. Trouble with the RPC and a
        full disk are waited out; raises JournalError when the chain shares no block with the journal.
        """
        while True:
            batch = await self._step_at_last(apply)
            if batch is None:
                await asyncio.sleep(self._poll_s)
            else:
                yield batch

    async def catch_up(self, apply: Callable[[Batch], None]) -> None:
        """Applies batches until the cursor is at the head. As `follow`, of which it is the beginning."""
        while await self._step_at_last(apply) is not None:
            pass

    async def _step_at_last(self, apply: Callable[[Batch], None]) -> Batch | None:
        told = ""  # of which trouble
        for tries in count(1):
            doubts = self._client.doubts
            try:
                return await self.step(apply)
            except (ChainError, JournalUnwritable) as error:
                if isinstance(error, ChainError) and tries % PATIENCE_STEPS == 0:
                    self._client.doubt(doubts)
                reason = str(error)
            except JournalError as error:
                if not self._client.doubt(doubts):
                    raise
                reason = str(error)
            if told != reason:
                told = reason
                log.warning("event=follower_waits reason=%r", told)
            await asyncio.sleep(self._poll_s)
        raise AssertionError("counts for ever")

    async def step(self, apply: Callable[[Batch], None]) -> Batch | None:
        """Reads and applies the next batch; None when the cursor is at the head. Raises as `follow`, and RpcBehind,
        RpcDown, RpcError."""
        head = await self._client.block("latest")
        cursor = self._journal.cursor
        if cursor is not None and cursor.hash == head.hash:
            return None
        doubts = self._client.doubts
        batch = await self._next(cursor, head, doubted=doubts != self._doubts)
        self._doubts = doubts
        if batch is not None:
            try:
                self._record(batch, apply)
            except OverflowError as error:  # a job's number of 64 bits, say: contracts count up from 1
                raise ChainError(f"the RPC shows numbers up to block {batch.upto.number} that no chain has") from error
        return batch

    def _record(self, batch: Batch, apply: Callable[[Batch], None]) -> None:
        with self._journal.transaction():
            if batch.unwound:
                self._journal.unwind(batch.upto.number)
            apply(batch)
            if not batch.unwound:
                self._journal.advance(batch.upto, batch.logs)

    async def _next(self, cursor: BlockRef | None, head: Block, *, doubted: bool) -> Batch | None:
        """`doubted`: the RPC that showed what was applied last has been put aside since. Then what the present one does
        not show is taken back, though it may merely lag."""
        first = self._start_block if cursor is None else cursor.number + 1
        if cursor is not None and doubted and head.number < cursor.number:
            return await self._unwind(head)
        if cursor is not None and not await self._extends(cursor, head):
            return await self._unwind(head, sure=doubted)
        if first > head.number:
            return None
        if head.number - first >= self._live_blocks:
            return await self._read_range(first, head)
        if first % REVIEW_BLOCKS == 0 and (unwound := await self._review(head)) is not None:
            return unwound
        block = head if first == head.number else await self._client.block(first)
        if cursor is not None and block.parent_hash != cursor.hash:
            return None  # reorganised while we looked; the next step sees it
        logs = await self._client.block_logs(self._addresses, block.ref)
        return Batch(block.ref, _decode(logs), head, logs=len(logs))

    async def _extends(self, cursor: BlockRef, head: Block) -> bool:
        """Whether the chain up to `head` still holds the cursor, or `head` comes from a server that merely lags."""
        if head.number == cursor.number + 1:
            return head.parent_hash == cursor.hash
        if head.number > cursor.number:
            return await self._is_on_chain(cursor, head)
        applied = {block.number: block.hash for block in self._journal.known_blocks()}
        return applied.get(head.number, head.hash) == head.hash

    async def _is_on_chain(self, block: BlockRef, head: Block) -> bool:
        """Whether it is among the ancestors of `head`. Raises RpcBehind when the server, another one than showed the
        head, has not come so far."""
        if block.number >= head.number:
            return block.hash == head.hash
        return (await self._client.block(block.number)).hash == block.hash

    async def _unwind(self, head: Block, *, sure: bool = True) -> Batch:
        """The newest applied block that is still on the chain, by bisection: what is below a shared block is shared."""
        known = self._journal.known_blocks()
        if head.number < known[-1].number:  # it has yet to come to any of them, as a server that syncs anew has
            raise RpcBehind(
                f"the RPC has blocks up to {head.number} only, and the journal begins at {known[-1].number}"
            )
        low, high = 0, len(known)
        while low < high:
            middle = (low + high) // 2
            if await self._is_on_chain(known[middle], head):
                high = middle
            else:
                low = middle + 1
        if low == len(known):
            raise JournalError(
                "the chain has none of the blocks that the journal knows: it was reset, or this is another chain under"
                " the same id; use another state folder"
            )
        if low == 0:
            raise RpcBehind("the RPC contradicts itself about the last block")
        depth = known[0].number - known[low].number
        if not sure and depth > self._live_blocks and self._client.doubt(self._client.doubts):
            raise RpcBehind(f"one RPC has replaced {depth} blocks: another is asked")
        log.warning("event=reorg depth=%d ancestor=%d", depth, known[low].number)
        return Batch(known[low], (), head, unwound=True)

    async def _review(self, head: Block) -> Batch | None:
        """The second look: back to before the blocks, where less was shown of one than it holds. While nobody shows as
        much as was applied, the same ones are looked at each time."""
        unreviewed = self._journal.unreviewed(head.number - self._live_blocks, REVIEW_BLOCKS)
        if not unreviewed:
            return None
        first = unreviewed[0][0].number
        applied = {block: logs for block, logs in unreviewed if block.number < first + REVIEW_BLOCKS}
        last = max(block.number for block in applied)
        answers = await self._client.logs_of_each(self._addresses, first, last)
        shown = [Counter(entry.block for entry in answer) for answer in answers]
        most = {block: max((each[block] for each in shown), default=-1) for block in applied}
        short = [block for block, logs in applied.items() if most[block] > logs]
        if short:
            log.error("event=logs_kept_back block=%d blocks=%d", short[0].number, len(short))
            if any(shown[0][block] < most[block] for block in short):
                self._client.doubt(self._client.doubts)
            return Batch((await self._client.block(first - 1)).ref, (), head, unwound=True)
        if most == applied:
            self._journal.set_reviewed(last)
        return None

    async def _read_range(self, first: int, head: Block) -> Batch:
        """Blocks from `first`, as many as the server serves at once, all of them deeper than `live_blocks`."""
        while True:
            last = min(first + self._range - 1, head.number - self._live_blocks)
            try:
                logs = await self._client.logs(self._addresses, first, last)
            except (RpcError, RpcDown):  # some say that a range is too large, others fall silent over it
                if self._range == 1:
                    raise
                self._range = max(1, self._range // 2)
                continue
            if len(logs) > MAX_LOGS:
                last = max(first, logs[MAX_LOGS].block.number - 1)
                logs = [entry for entry in logs if entry.block.number <= last]
                self._range = last - first + 1
            else:
                self._range = min(self._range * 2, self._max_range)
            return Batch((await self._client.block(last)).ref, _decode(logs), head)


def _decode(logs: Sequence[Log]) -> tuple[Occurrence, ...]:
    """Events of ours; a log that is none of them is passed over, one that claims to be and does not fit is refused."""
    found = []
    for entry in logs:
        try:
            event = decode_log(entry.topics, entry.data)
        except ValueError as error:  # AbiMismatch, or a number that is none of an enum's
            raise ChainError(
                f"{entry.address} logged what its ABI does not allow; check the deployment: {error}"
            ) from None
        if event is not None:
            found.append(Occurrence(event, entry))
    return tuple(found)
