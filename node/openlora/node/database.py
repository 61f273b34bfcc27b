"""One SQLite file with one process and one connection, which survives a crash at any point."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from openlora.node.errors import JournalError, JournalUnwritable
from openlora.node.malformed import quote

T = TypeVar("T")
SQL_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)  # the latter of a damaged file's text in SQLite's own message
DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # nothing else is a reason to take an older copy


class Database:
    """WAL, synchronous=FULL: after a crash every committed transaction is there and every other one is gone.

    It is used from the event loop and without a thread: a commit took 0.1 ms here (one fsync; a few ms on a slow disk)
    and there are a handful per job, while a thread would let a coroutine run between a check and the record of it. So a
    transaction is a plain `with` block that contains no `await`.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        """Opens or creates `path`. Schema n is what the first n scripts of `migrations` make.

        Raises JournalError when another process has it open, a newer version wrote it, or it is damaged; and
        JournalUnwritable, OSError when the disk is full or the folder not ours.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = _lock(path.with_suffix(".lock"))
        self._writer: object = None  # the task inside `transaction`
        self._writing = False
        try:
            self._db = _open(path)
            self._migrate(migrations)
        except SQL_ERRORS as error:
            os.close(self._lock)
            raise self._failed(error) from error
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on disk when the block ends. The block must not await. Nested blocks join the outer one.

        Raises JournalUnwritable when the disk is full or failing, JournalError when the file is damaged: nothing was
        recorded then.
        """
        task = _current_task()
        if self._writing:
            assert self._writer is task, "a transaction awaited: another task entered it"
            yield self._db
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._writer, self._writing = task, True
            try:
                yield self._db
                self._commit()
            finally:
                self._writer, self._writing = None, False
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def rows(self, sql: str, *values: object) -> list[Any]:
        """The rows of a SELECT. Raises JournalUnwritable when it cannot be read, JournalError when it is damaged."""
        try:
            return self._db.execute(sql, values).fetchall()
        except SQL_ERRORS as error:
            raise self._failed(error) from error

    def read(self, make: Callable[[tuple[Any, ...]], T], sql: str, *values: object) -> list[T]:
        """What `make` makes of each row. Raises as `rows`; a row of which nothing can be made is damage too."""
        rows = self.rows(sql, *values)
        try:
            return [make(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise self._failed(error) from error

    def probe(self) -> None:
        """Returns if the file can be read now. Raises JournalUnwritable."""
        self.rows("SELECT count(*) FROM sqlite_master")

    def _failed(self, error: Exception) -> JournalError:
        code = getattr(error, "sqlite_errorcode", None)  # none where the file's bytes are no text, or not what they say
        damaged = not isinstance(error, sqlite3.ProgrammingError) if code is None else code & 0xFF in DAMAGE
        if damaged:
            return JournalError(f"{self.path} is damaged: {quote(str(error))}; restore it from a backup")
        return JournalUnwritable(f"{self.path} cannot be used: {error}; free disk space or check the disk")

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(migrations):
            raise JournalError(f"{self.path} has schema {version}, newer than {len(migrations)}: upgrade this program")
        for number, script in enumerate(migrations[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _lock(path: Path) -> int:
    """Holds `path` until the descriptor is closed or the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise JournalError(
            f"another agent (process {holder}) uses {path.parent}; stop it, or use another state folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def lock_holder(path: Path) -> int | None:
    """The process that holds the lock; 0 if it does not say, None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(descriptor, 32).decode(errors="replace").strip()
        return int(said) if said.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs: tests and command-line tools
        return None
