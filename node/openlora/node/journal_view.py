"""A journal looked at from outside, whether its agent runs or not: nothing is written, and no lock is taken."""

import sqlite3
from pathlib import Path
from typing import Final

NONCES: Final = "SELECT max(nonce) FROM attempts UNION ALL SELECT max(nonce) FROM foreign_transactions"
FIRST_NONCE: Final = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'first nonce'"
PATIENCE_S: Final = 5.0


def read_only(path: Path) -> sqlite3.Connection:
    """A connection beside the agent's own. Raises sqlite3.Error.

    Without a write-ahead log nobody writes, and SQLite is told so: it would leave an empty one behind.
    """
    nobody_writes = not path.with_name(f"{path.name}-wal").exists()
    options = "mode=ro&immutable=1" if nobody_writes else "mode=ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=PATIENCE_S)


def next_nonce(db: sqlite3.Connection) -> int | None:
    """The first nonce that a journal does not know to be used; None in one whose hot key was never compared."""
    first = db.execute(FIRST_NONCE).fetchone()
    if first is None:
        return None
    return max(int(first[0]), *(int(nonce) + 1 for (nonce,) in db.execute(NONCES) if nonce is not None), 0)
