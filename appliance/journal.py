"""The journal of a node: small values in SQLite that survive the process and a power cut.

It is what the compute and datapath roles know; they have no other database. The file is readable
by its owner alone, for it holds what instances were given.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from appliance.errors import Unavailable
from appliance.world import CrashPoint, no_crash

V = TypeVar("V")

_TABLE = """CREATE TABLE IF NOT EXISTS entries
    (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID"""


class Journal:
    """Values by kind and key; each write is durable when the call returns.

    :raises Unavailable: the file cannot be opened or written; what was there stays.
    """

    def __init__(self, path: Path, crash: CrashPoint = no_crash) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._crash = crash
        self._name = f"journal.{path.stem}"
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            for statement in (
                "PRAGMA journal_mode=WAL",
                "PRAGMA synchronous=FULL",
                "PRAGMA busy_timeout=10000",
                _TABLE,
            ):
                self._connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"Could not open the journal {path}: {error}.") from error

    def put(self, kind: str, key: str, value: msgspec.Struct) -> None:
        """Write one value."""
        self.change([(kind, key, value)])

    def delete(self, kind: str, key: str) -> None:
        """Delete one value; none there is no error."""
        self.change([(kind, key, None)])

    def change(self, changes: Iterable[tuple[str, str, msgspec.Struct | None]]) -> None:
        """Write and delete (``None``) several values, all or none."""
        rows = [
            (kind, key, None if value is None else msgspec.json.encode(value))
            for kind, key, value in changes
        ]
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for kind, key, body in rows:
                    if body is None:
                        self._connection.execute(
                            "DELETE FROM entries WHERE kind = ? AND key = ?", (kind, key)
                        )
                    else:
                        self._connection.execute(
                            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                            (kind, key, body),
                        )
                self._crash(f"{self._name}.before-commit")
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise Unavailable(f"Could not write the journal {self._path}: {error}.") from error
            except BaseException:
                self._roll_back()
                raise
            self._crash(f"{self._name}.after-commit")

    def _roll_back(self) -> None:
        # One that is closed, or has rolled back by itself, has nothing to say against it.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def get(self, kind: str, key: str, form: type[V]) -> V | None:
        """Return one value."""
        rows = self._select("SELECT body FROM entries WHERE kind = ? AND key = ?", (kind, key))
        return msgspec.json.decode(rows[0][0], type=form) if rows else None

    def all(self, kind: str, form: type[V]) -> dict[str, V]:
        """Return all values of a kind by key."""
        rows = self._select("SELECT key, body FROM entries WHERE kind = ?", (kind,))
        return {str(key): msgspec.json.decode(body, type=form) for key, body in rows}

    def _select(self, statement: str, arguments: tuple[str, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, arguments).fetchall()
            except sqlite3.Error as error:
                raise Unavailable(f"Could not read the journal {self._path}: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def read_journal(path: Path) -> dict[str, dict[str, bytes]]:
    """Return the bodies in a journal by kind and key, without disturbing whoever has it open.

    Empty where there is no journal.

    :raises Unavailable: the file cannot be read.
    """
    if not path.exists():
        return {}
    found: dict[str, dict[str, bytes]] = {}
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            for kind, key, body in connection.execute("SELECT kind, key, body FROM entries"):
                found.setdefault(kind, {})[key] = body
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise Unavailable(f"Could not read the journal {path}: {error}.") from error
    return found
