"""Which verified adapters the engine holds: loaded when a job needs them, dropped when others need the room."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from openlora.node.adapters.fetch import AdapterFetcher
from openlora.node.adapters.store import AdapterStore
from openlora.node.engine.client import InferenceEngine
from openlora.node.errors import OpenLoraError
from openlora.node.tasks import running


class AdapterResidency:
    """Adapters by digest, least recently used first out; what a job holds stays on disk and in memory.

    `max_bytes` bounds what is loaded and not held. Loads of different adapters run at once; two jobs that want the same
    one share its load.
    """

    def __init__(self, fetcher: AdapterFetcher, store: AdapterStore, engine: InferenceEngine, max_bytes: int) -> None:
        self._fetcher = fetcher
        self._store = store
        self._engine = engine
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[bytes, int] = OrderedDict()  # digest → bytes, oldest use first
        self._holds: Counter[bytes] = Counter()
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    @staticmethod
    def key(digest: bytes) -> str:
        """The engine's name for an adapter: its content, so that no two can share one."""
        return digest.hex()

    @property
    def loaded(self) -> Collection[bytes]:
        """The adapters that the engine holds, least recently used first."""
        return self._loaded.keys()

    @asynccontextmanager
    async def hold(self, digests: Sequence[bytes]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Starts loading every adapter of `digests` and keeps them while the block runs.

        The block is given `ready`, to await before it uses them: it raises AdapterError for an adapter that is refused,
        ContentError for one that cannot be had, EngineDied.
        """
        for digest in digests:
            self._holds[digest] += 1
            self._store.pin(digest)
        try:
            async with running(self._load_all(digests), "adapters") as loading:

                async def ready() -> None:
                    if (error := await asyncio.shield(loading)) is not None:
                        raise error

                yield ready
        finally:
            for digest in digests:
                self._store.unpin(digest)
                self._holds[digest] -= 1

    async def _load_all(self, digests: Sequence[bytes]) -> OpenLoraError | None:
        try:
            for digest in digests:
                await self._load(digest)
        except OpenLoraError as error:  # for whoever awaits `ready`, not for the task
            return error
        return None

    async def _load(self, digest: bytes) -> None:
        turn = self._turns.setdefault(digest, asyncio.Lock())
        async with turn:
            if digest not in self._loaded:
                path = await self._fetcher.ensure(digest)
                await self._make_room()
                loaded = await self._engine.load_adapter(self.key(digest), str(path))
                self._loaded[digest] = loaded.bytes
            self._loaded.move_to_end(digest)

    async def _make_room(self) -> None:
        for digest in tuple(self._loaded):
            if sum(self._loaded.values()) < self._max_bytes:
                return
            if not self._holds[digest] and self._loaded.pop(digest, None) is not None:
                await self._engine.unload_adapter(self.key(digest))
