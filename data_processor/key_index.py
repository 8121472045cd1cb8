"""Keys to numbers on disk: as many as there are calls or facts, in the same little memory."""

from __future__ import annotations

import sqlite3

CACHE_KIB = 2048


class KeyIndex:
    """A table of (key, number) in a private temporary file that vanishes with the process; one thread only."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._table.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._table.execute("BEGIN")  # one transaction for ever: nothing is kept, so nothing needs to be committed

    def set(self, key: bytes, number: int) -> None:
        """Stores the number of a key, in place of the one it had."""
        self._table.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, number))

    def get(self, key: bytes) -> int | None:
        """The number of a key, or None."""
        row = self._table.execute("SELECT number FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def __len__(self) -> int:
        return self._table.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
