"""Where the tasks of an exchange live, and the threads in which it waits for the disk."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import trio

from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid

_DISK_THREADS: Final = 4


class Tasks:
    """The nursery of a running exchange."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with trio.open_nursery() as self._nursery:
            self.started.set()
            yield

    @property
    def nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("the exchange is not running")
        return self._nursery


class DiskStore:
    """A BlockStore for tasks: its methods, each in a thread, a few at once."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._limiter = trio.CapacityLimiter(_DISK_THREADS)

    async def get(self, cid: Cid) -> bytes:
        return await trio.to_thread.run_sync(self._blocks.get, cid, limiter=self._limiter)

    async def put(self, cid: Cid, block: bytes) -> None:
        await trio.to_thread.run_sync(self._blocks.put, cid, block, limiter=self._limiter)

    async def which(self, cids: list[Cid]) -> list[bool]:
        """Whether the store has each of them."""
        return await trio.to_thread.run_sync(lambda: [self._blocks.has(cid) for cid in cids], limiter=self._limiter)
