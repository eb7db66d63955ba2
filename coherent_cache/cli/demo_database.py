"""The demo's source of truth: a small SQLite database that all workers share, and the record of what they published."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypedDict

BUSY_SECONDS: Final = 20.0
"""Seconds to wait for another process' transaction."""

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
CREATE TABLE items (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, payload TEXT NOT NULL, updated_at REAL NOT NULL);
CREATE TABLE published (
    id INTEGER NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (id, version)
) WITHOUT ROWID;
"""


class Row(TypedDict):
    """What is cached of an item.

    Attributes:
        id: number of the item, from 1.
        version: how often it was changed; only ever grows.
        payload: something to cache.
    """

    id: int
    version: int
    payload: str


class Database:
    """One connection to the database. For one thread."""

    def __init__(self, path: Path) -> None:
        """Open a database that :meth:`create` made."""
        # isolation_level=None: transactions begin where the code says so.
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        # The file is thrown away at the end: it need not survive a power cut.
        self._connection.execute("PRAGMA synchronous = OFF")

    @classmethod
    def create(cls, path: Path, items: int) -> Database:
        """Make a database with ``items`` items, all in version 1."""
        database = cls(path)
        database._connection.executescript(_SCHEMA)
        now = time.time()
        rows = ((number, 1, _payload(number, 1), now) for number in range(1, items + 1))
        database._connection.execute("BEGIN")
        database._connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
        database._connection.execute("COMMIT")
        return database

    def read(self, number: int) -> Row:
        """Return an item as it is now."""
        found = self._connection.execute("SELECT version, payload FROM items WHERE id = ?", (number,)).fetchone()
        return Row(id=number, version=found[0], payload=found[1])

    def change(self, number: int) -> Row:
        """Change an item, in a transaction; return it as it is afterwards."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            version = self.read(number)["version"] + 1
            row = Row(id=number, version=version, payload=_payload(number, version))
            self._connection.execute(
                "UPDATE items SET version = version + 1, payload = ?, updated_at = ? WHERE id = ?",
                (row["payload"], time.time(), number),
            )
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return row

    def note_published(self, number: int, version: int, at: float) -> None:
        """Note that at ``at``, on the clock that all processes share, the cache held this version or a newer one."""
        self._connection.execute("INSERT OR IGNORE INTO published VALUES (?, ?, ?)", (number, version, at))

    def outdated_at(self, number: int, version: int) -> float | None:
        """Return when a newer version was first published; None if there is none."""
        query = "SELECT MIN(at) FROM published WHERE id = ? AND version > ?"
        found: float | None = self._connection.execute(query, (number, version)).fetchone()[0]
        return found

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _payload(number: int, version: int) -> str:
    return f"item {number}, revision {version}: " + "x" * 80
