"""Adapters from the content network to the disk store: fetch → verify → install. And the way back: publish."""

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from openlora.node.adapters.folder import copy_adapter
from openlora.node.adapters.modules import Layout
from openlora.node.adapters.store import AdapterStore
from openlora.node.adapters.verify import verify_adapter
from openlora.node.content import Content, adapter_cid, adapter_digest
from openlora.node.errors import AdapterCheckFailed, AdapterError

MAX_REFUSALS: Final = 1024
MAX_CHECKS: Final = 2  # children at a time


class AdapterFetcher:
    """Brings adapters into `store` by digest, each verified against `layout` before it becomes visible there.

    A refusal is final for a digest, since the same bytes would be refused again: it is remembered and repeated without
    fetching. Content that is missing is asked for again.
    """

    def __init__(self, store: AdapterStore, content: Content, layout: Layout, *, max_adapter_bytes: int) -> None:
        self._store = store
        self._content = content
        self._layout = layout
        self._max_adapter_bytes = max_adapter_bytes
        self._refusals: OrderedDict[bytes, str] = OrderedDict()
        self._checks = asyncio.Semaphore(MAX_CHECKS)
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, digest: bytes) -> Path:
        """The folder of the verified adapter `digest`, fetched if need be; pin it first if it is to stay.

        Concurrent calls for one digest share one fetch, and survive the cancellation of any of them.
        Raises AdapterError if it is refused, ContentError or ContentNotFound if it cannot be had.
        """
        turn = self._turns.setdefault(digest, asyncio.Lock())
        async with turn:
            if present := self._store.get(digest):
                return present
            if reason := self._refusals.get(digest):
                raise AdapterError(reason)
            return await self._bring(digest)

    async def _bring(self, digest: bytes) -> Path:
        folder = self._store.scratch(digest)
        try:
            await self._content.fetch_directory(adapter_cid(digest), folder, max_bytes=self._max_adapter_bytes)
            await asyncio.to_thread(_make_read_only, folder)
            async with self._checks:
                await verify_adapter(folder, self._layout)
            return await asyncio.to_thread(self._store.install, digest, folder)
        except AdapterCheckFailed:
            raise  # the machine's fault, perhaps
        except AdapterError as error:
            self._refusals[digest] = str(error)
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def publish_adapter(directory: Path, content: Content, layout: Layout) -> bytes:
    """Verify the adapter in `directory` and store it; returns its digest, the name it has on chain.

    Only the adapter's two files are published: what training leaves beside them (a README, checkpoints) stays behind.
    Raises AdapterError if a node would refuse it.
    """
    with tempfile.TemporaryDirectory(prefix="openlora-publish-") as scratch:
        folder = Path(scratch)
        await asyncio.to_thread(copy_adapter, directory, folder)
        await verify_adapter(folder, layout)
        return adapter_digest(await content.publish_directory(folder))


def _make_read_only(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o444)
