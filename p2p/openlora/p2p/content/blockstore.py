"""Blocks as files: `<root>/<shard>/<cid>`, the shard being the CID's next-to-last two characters, as in Kubo's flatfs.

Several processes may use one store at once: a block appears by an atomic rename of a synced file, its content follows
from its name, and so two writers can only ever write the same bytes.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from openlora.p2p.content.cid import Cid
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES
from openlora.p2p.errors import BlockMissing, MalformedBlock, MalformedCid, OverBudget

_ABANDONED_AFTER_S: Final = 3600.0
_UNFINISHED: Final = "unfinished"


class BlockStore:
    """Owns the folder `root`. After a crash at any point every block present is whole; half-written files are swept
    when a store is opened an hour later. Calls block on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unfinished = root / _UNFINISHED
        self._unfinished.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def put(self, cid: Cid, block: bytes) -> None:
        """Durable on return. Raises MalformedBlock if `block` is not what `cid` names, OverBudget above 2 MiB."""
        if len(block) > MAX_BLOCK_BYTES:
            raise OverBudget(f"a block of {len(block)} bytes; the limit is {MAX_BLOCK_BYTES}")
        if not cid.matches(block):
            raise MalformedBlock(f"the block does not match its CID {cid}")
        path = self._path(cid)
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=self._unfinished)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(block)
                file.flush()
                os.fsync(descriptor)
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def get(self, cid: Cid) -> bytes:
        """The block, checked against its CID. A damaged file is removed and counts as missing (BlockMissing)."""
        path = self._path(cid)
        try:
            with path.open("rb") as file:
                block = file.read(MAX_BLOCK_BYTES + 1)
        except FileNotFoundError as error:
            raise BlockMissing(f"no block {cid} in the store") from error
        if not cid.matches(block):
            path.unlink(missing_ok=True)
            raise BlockMissing(f"the block {cid} was damaged on disk and has been removed")
        return block

    def has(self, cid: Cid) -> bool:
        return self._path(cid).exists()

    def delete(self, cid: Cid) -> None:
        """Remove a block; a missing one is no error."""
        self._path(cid).unlink(missing_ok=True)

    def cids(self) -> Iterator[Cid]:
        """All blocks present, in no order."""
        for path in self._root.glob("??/*"):
            with suppress(MalformedCid):  # a stray file is none of ours
                yield Cid.parse(path.name)

    def size(self) -> int:
        """Bytes of all blocks present; one `stat` a block."""
        total = 0
        for cid in self.cids():
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += self._path(cid).stat().st_size
        return total

    def _path(self, cid: Cid) -> Path:
        name = str(cid)
        return self._root / name[-3:-1] / name

    def _sweep(self) -> None:
        for path in self._unfinished.iterdir():
            with suppress(FileNotFoundError):  # its writer was alive after all, or another process sweeps too
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()


def _sync_folder(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
