"""Journals that a disk has spoilt."""

import sqlite3
from contextlib import closing
from pathlib import Path

PAGE_BYTES = 4096


def clear_first_page(journal: Path, table: str) -> None:
    """Zeros where a table begins."""
    with closing(sqlite3.connect(journal)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    content = bytearray(journal.read_bytes())
    content[PAGE_BYTES * (page - 1) : PAGE_BYTES * page] = bytes(PAGE_BYTES)
    journal.write_bytes(content)
