"""Blocks as files: `<root>/<shard>/<cid>`, the shard being the CID's next-to-last two characters, as in Kubo's flatfs.

Several processes may use one store at once: a block appears by an atomic rename of a synced file, its content follows
from its name, and so two writers can only ever write the same bytes. Each keeps its own count of the bytes in the
store, and takes stock anew now and then to see what the others did.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from openlora.p2p import durable
from openlora.p2p.content.cid import Cid
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES
from openlora.p2p.errors import BlockMissing, MalformedBlock, MalformedCid, OverBudget, StoreFull

_ABANDONED_AFTER_S: Final = 3600.0
_COUNTED_FOR_S: Final = 600.0
_FULL_FOR_S: Final = 1.0  # a full store is counted at most once a second: another process may have made room
_UNFINISHED: Final = "unfinished"
_MODE: Final = 0o640  # agent and network process may be two users, of one group


class BlockStore:
    """Owns the folder `root`. After a crash at any point every block present is whole; half-written files are swept
    when a store is opened an hour later. Calls block on the disk; threads may share a store.

    `max_bytes` bounds the bytes of all blocks present. Processes that fill one store at once may pass it by what they
    write between two counts.
    """

    def __init__(
        self, root: Path, *, max_bytes: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._max_bytes = root, max_bytes
        self._size = _Size(self._count, clock)
        self._unfinished = root / _UNFINISHED
        self._unfinished.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def put(self, cid: Cid, block: bytes) -> None:
        """Durable on return. Raises MalformedBlock if `block` is not what `cid` names, OverBudget above 2 MiB, and
        StoreFull where the store's bytes would exceed its quota."""
        if len(block) > MAX_BLOCK_BYTES:
            raise OverBudget(f"a block of {len(block)} bytes; the limit is {MAX_BLOCK_BYTES}")
        if not cid.matches(block):
            raise MalformedBlock(f"the block does not match its CID {cid}")
        path = self._path(cid)
        if path.exists():
            return
        self._size.reserve(len(block), self._max_bytes)
        try:
            self._write(path, block)
        except BaseException:
            self._size.change(-len(block))
            raise

    def get(self, cid: Cid) -> bytes:
        """The block, checked against its CID. A damaged file is removed and counts as missing (BlockMissing)."""
        path = self._path(cid)
        try:
            with path.open("rb") as file:
                block = file.read(MAX_BLOCK_BYTES + 1)
        except FileNotFoundError as error:
            raise BlockMissing(f"no block {cid} in the store") from error
        if not cid.matches(block):
            self._unlink(path)
            raise BlockMissing(f"the block {cid} was damaged on disk and has been removed")
        return block

    def has(self, cid: Cid) -> bool:
        return self._path(cid).exists()

    def delete(self, cid: Cid) -> None:
        """Remove a block; a missing one is no error."""
        self._unlink(self._path(cid))

    def cids(self) -> Iterator[Cid]:
        """All blocks present, in no order."""
        for path in self._root.glob("??/*"):
            with suppress(MalformedCid):  # a stray file is none of ours
                yield Cid.parse(path.name)

    def size(self) -> int:
        """Bytes of all blocks present: counted at most ten minutes ago, and kept up since for what this object did."""
        return self._size.get()

    def _count(self) -> int:
        """One `stat` a block."""
        total = 0
        for cid in self.cids():
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += self._path(cid).stat().st_size
        return total

    def _write(self, path: Path, block: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        durable.write(path, block, unfinished_in=self._unfinished, mode=_MODE)

    def _unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            block_bytes = path.stat().st_size
            path.unlink()
            self._size.change(-block_bytes)

    def _path(self, cid: Cid) -> Path:
        name = str(cid)
        return self._root / name[-3:-1] / name

    def _sweep(self) -> None:
        for path in self._unfinished.iterdir():
            with suppress(FileNotFoundError):  # its writer was alive after all, or another process sweeps too
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()


class _Size:
    """A running count of bytes, of which others may know better: it is taken anew when it is old, or in the way."""

    def __init__(self, count: Callable[[], int], clock: Callable[[], float]) -> None:
        self._count, self._clock = count, clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._counted_at = -math.inf

    def get(self) -> int:
        with self._lock:
            self._refresh(_COUNTED_FOR_S)
            return self._bytes

    def change(self, by: int) -> None:
        with self._lock:
            self._bytes += by

    def reserve(self, more: int, max_bytes: int | None) -> None:
        """Counts bytes before they are written, so that threads do not pass the quota together."""
        with self._lock:
            if max_bytes is not None:
                self._refresh(_COUNTED_FOR_S)
                if self._bytes + more > max_bytes:
                    self._refresh(_FULL_FOR_S)
                if self._bytes + more > max_bytes:
                    raise StoreFull(f"the block store holds {self._bytes} bytes; {max_bytes} are allowed")
            self._bytes += more

    def _refresh(self, older_than_s: float) -> None:
        now = self._clock()
        if now - self._counted_at >= older_than_s:
            self._bytes, self._counted_at = self._count(), now
