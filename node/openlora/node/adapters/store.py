"""Verified adapters on disk, by content: `<root>/<digest in hex>/{adapter_config.json,adapter_model.safetensors}`."""

import os
import secrets
import shutil
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Final

from openlora.node.errors import ContentError

_UNFINISHED: Final = ".unfinished"
_DIGEST_CHARACTERS: Final = 64


class AdapterStore:
    """Owns the folder `root`, one process at a time: adapters that were verified for one base model, none of which is
    ever written to again. At most `max_bytes` of them, the least recently used leaving first, save those pinned.

    After a crash at any point each adapter is there whole or not at all: it appears and disappears by one rename. The
    folders are the index and their modification times the order of use; nothing else needs to be kept in step.
    Pins are of this process and do not survive it. Calls block on the disk and may come from several threads.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # guards _pins and _sizes
        self._pins: Counter[bytes] = Counter()
        self._unfinished = root / _UNFINISHED
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        self._sizes = self._scan()

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def digests(self) -> tuple[bytes, ...]:
        """What is present, least recently used first."""
        with self._lock:
            return tuple(self._sizes)

    def get(self, digest: bytes) -> Path | None:
        """The adapter's folder, now the most recently used, or None."""
        with self._lock:
            return self._get(digest)

    def pin(self, digest: bytes) -> None:
        """Keep `digest` from eviction, present or yet to come, until as many `unpin`."""
        with self._lock:
            self._pins[digest] += 1

    def unpin(self, digest: bytes) -> None:
        with self._lock:
            assert self._pins[digest] > 0, "unpinned more often than pinned"
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]

    def scratch(self, digest: bytes) -> Path:
        """A path on the store's file system that does not exist yet, for `install`; swept when the store is opened."""
        return self._unfinished / f"{digest.hex()}.{secrets.token_hex(8)}"

    def install(self, digest: bytes, folder: Path) -> Path:
        """Move the verified `folder` (at a `scratch` path) into place as `digest`, evicting to stay within `max_bytes`.

        Raises ContentError if it cannot fit beside what is pinned; then, and if `digest` is present already, `folder`
        is left to the caller.
        """
        size = _folder_bytes(folder)
        _sync(folder)
        with self._lock:
            if present := self._get(digest):
                return present
            self._make_room(size)
            folder.rename(self._path(digest))
            _sync(self._root)
            self._sizes[digest] = size
            return self._path(digest)

    def remove(self, digest: bytes) -> None:
        """Forget `digest`, pinned or not; files that a process has mapped stay readable to it."""
        with self._lock:
            self._remove(digest)

    def _get(self, digest: bytes) -> Path | None:
        if digest not in self._sizes:
            return None
        try:
            os.utime(self._path(digest))
        except FileNotFoundError:  # removed behind our back: it can be fetched again
            del self._sizes[digest]
            return None
        self._sizes.move_to_end(digest)
        return self._path(digest)

    def _remove(self, digest: bytes) -> None:
        if self._sizes.pop(digest, None) is not None:
            leaving = self.scratch(digest)
            self._path(digest).rename(leaving)
            shutil.rmtree(leaving)

    def _make_room(self, size: int) -> None:
        """Evict what it takes, or nothing if that would not be enough."""
        leaving, free = [], self._max_bytes - sum(self._sizes.values())
        for digest, its_size in self._sizes.items():
            if free >= size:
                break
            if digest not in self._pins:
                leaving.append(digest)
                free += its_size
        if free < size:
            raise ContentError(f"the adapter store's {self._max_bytes} bytes are full of adapters in use; try later")
        for digest in leaving:
            self._remove(digest)

    def _path(self, digest: bytes) -> Path:
        return self._root / digest.hex()

    def _scan(self) -> OrderedDict[bytes, int]:
        folders = [path for path in self._root.iterdir() if _is_digest(path.name)]
        folders.sort(key=lambda path: path.stat().st_mtime_ns)
        return OrderedDict((bytes.fromhex(path.name), _folder_bytes(path)) for path in folders)


def _is_digest(name: str) -> bool:
    return len(name) == _DIGEST_CHARACTERS and all(character in "0123456789abcdef" for character in name)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _sync(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
