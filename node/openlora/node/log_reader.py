"""A node's log file: its last lines, and those that come, by job and by level. Memory is bounded by what is shown."""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
EVERY_S: Final = 0.25
_TEXT_LEVEL: Final = re.compile(r"\blevel=([A-Z]+)\b")
_FIELD: Final = re.compile(r"""(\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S*)""")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines. A line without a level, such as one of a traceback, goes with any."""

    job_id: int | None = None
    level: str = "debug"

    def __contains__(self, line: str) -> bool:
        if self.job_id is not None and not re.search(rf'\bjob_id"?[=:]\s?{self.job_id}\b', line):
            return False
        return LEVELS.index(level_of(line) or "critical") >= LEVELS.index(self.level)


def level_of(line: str) -> str:
    """ "" where it has none of the known ones."""
    if line.startswith("{"):
        found = str(fields(line).get("level", "")).lower()
    else:
        match = _TEXT_LEVEL.search(line)
        found = match[1].lower() if match else ""
    return found if found in LEVELS else ""


def fields(line: str) -> dict[str, object]:
    """A line as its fields: a JSON one as it is, a text one by its key=value pairs."""
    if line.startswith("{"):
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        if isinstance(document, dict):
            return document
    pairs = {key: value.strip("'\"") for key, value in _FIELD.findall(line)}
    return {"line": line} if not pairs else {"at": line.partition(" level=")[0], **pairs}


def last(path: Path, wanted: Wanted, count: int) -> tuple[list[str], int]:
    """The last `count` wanted lines, and where the file ended. Raises OSError."""
    kept: deque[str] = deque(maxlen=count)
    with path.open("rb") as opened:
        for raw in opened:
            line = raw.decode(errors="replace").rstrip("\n")
            if line in wanted:
                kept.append(line)
        return list(kept), opened.tell()


def follow(path: Path, wanted: Wanted, position: int, stopped: Callable[[], bool]) -> Iterator[str]:
    """Wanted lines as they come after `position`; a file that is cut or replaced is read from its beginning."""
    inode = None
    while not stopped():
        try:
            opened = path.open("rb")
        except FileNotFoundError:  # between two files
            time.sleep(EVERY_S)
            continue
        with opened:
            status = os.fstat(opened.fileno())
            if status.st_size < position or inode not in (None, status.st_ino):
                position = 0
            inode = status.st_ino
            opened.seek(position)
            for raw in opened:
                if not raw.endswith(b"\n"):
                    break  # the rest of the line is on its way
                position += len(raw)
                if (line := raw.decode(errors="replace").rstrip("\n")) in wanted:
                    yield line
        time.sleep(EVERY_S)
