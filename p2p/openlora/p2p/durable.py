"""Files that appear whole or not at all, and outlast a power cut."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write(
    path: Path, data: bytes, *, unfinished_in: Path | None = None, overwrite: bool = True, mode: int = 0o600
) -> None:
    """`path` holds what it held before or all of `data`, and on return durably the latter, with this mode.

    It is written in `unfinished_in`, a folder of the same file system, or beside `path` under a hidden name. With
    `overwrite` false a file that is there already stays as it is. Raises OSError, and then nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=unfinished_in or path.parent, prefix=f".{path.name}.")
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if overwrite:
            unfinished.replace(path)
        else:
            with suppress(FileExistsError):
                path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Make a name in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
