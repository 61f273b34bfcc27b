"""An adapter's folder: two files, which may be anybody's."""

import mmap
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from openlora.node.adapters.config import CONFIG_FILE
from openlora.node.errors import AdapterError
from openlora.node.malformed import quote

WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"


def require_alone(directory: Path) -> None:
    """A stranger's adapter is the two files and nothing beside them. Raises AdapterError."""
    try:
        with os.scandir(directory) as entries:
            found = {entry.name for entry, _ in zip(entries, range(8), strict=False)}
    except OSError as error:
        raise AdapterError(f"{directory}: {error.strerror}") from error
    if extra := found - {CONFIG_FILE, WEIGHTS_FILE}:
        raise AdapterError(f"{quote(min(extra))} is no part of an adapter: keep {CONFIG_FILE} and {WEIGHTS_FILE} alone")


def copy_adapter(source: Path, destination: Path) -> None:
    """The two files of a folder that a person named, as plain files, wherever links lead: in Hugging Face's cache all
    are links. Raises AdapterError."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            shutil.copyfile(source / name, destination / name)
        except OSError as error:
            hint = _pickle_hint(source, name)
            raise AdapterError(f"{source / name} cannot be read: {error.strerror}{hint}") from error


def require_both(directory: Path) -> None:
    """Raises AdapterError where a file is missing."""
    if not directory.is_dir():
        raise AdapterError(f"{directory}: no such folder")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.lexists(directory / name):
            raise AdapterError(f"{name} is missing from the adapter{_pickle_hint(directory, name)}")


def _pickle_hint(directory: Path, missing: str) -> str:
    pickled = missing == WEIGHTS_FILE and os.path.lexists(directory / _PICKLE)
    return f"; {_PICKLE} is a pickle, which is never read: save safetensors" if pickled else ""


def contents(path: Path, max_bytes: int) -> memoryview:
    """A regular file's bytes, mapped read-only: no symbolic link, and a pipe or device is refused without waiting.
    Raises AdapterError, also unless they are 1 to `max_bytes`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AdapterError(f"{path.name}: not a plain file")
            if not 0 < status.st_size <= max_bytes:
                raise AdapterError(f"{path.name}: {status.st_size} bytes, where 1 to {max_bytes} can be right")
            return memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise AdapterError(f"{path.name}: cannot be read as a plain file ({error.strerror})") from error
