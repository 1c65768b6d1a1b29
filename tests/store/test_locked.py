"""Another process holds the database, or it is damaged: one waits, but not for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from appliance import store as store_module
from appliance.errors import Unavailable
from appliance.store import Store, Transaction
from appliance.world import World
from tests.faults.rounds import at_once

PATIENCE_S = 1.0
HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    held.execute(statement)
print("held", flush=True)
sys.stdin.readline()
held.close()
"""
WRITING = ("BEGIN IMMEDIATE",)
ALONE = ("PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "INSERT INTO t VALUES (0)", "COMMIT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(store_module, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(store_module, "BUSY_S", 0.3)
    made = Store(f"sqlite:///{path}", World())
    made.transaction(lambda tx: tx.execute(text("CREATE TABLE t (a INTEGER)")))
    yield made
    made.close()


@contextmanager
def held(path: Path, *statements: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process hold the database."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.communicate(b"\n", timeout=20)


def put(tx: Transaction) -> None:
    tx.execute(text("INSERT INTO t VALUES (1)"))


def count(store: Store) -> int:
    return int(store.read(lambda tx: tx.execute(text("SELECT COUNT(*) FROM t")).scalar_one()))


@pytest.mark.faults("store: locked", quick=True)
def test_a_short_lock_is_waited_for(store: Store, path: Path) -> None:
    with held(path, *WRITING) as holder:
        writing = threading.Thread(target=lambda: store.transaction(put))
        writing.start()
        time.sleep(0.4)
        assert holder.stdin is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        writing.join(10)
    assert count(store) == 1


@pytest.mark.faults("store: locked", quick=True)
def test_a_long_lock_is_told_in_time_to_all_who_wait(store: Store, path: Path) -> None:
    with held(path, *WRITING):
        started = time.monotonic()
        results = at_once([lambda: store.transaction(put)] * 20)
        assert time.monotonic() - started < PATIENCE_S + 2
        assert {type(result) for result in results} == {Unavailable}
        assert all("store" in str(result) for result in results)
        assert count(store) == 0, "who reads is not held up"
    store.transaction(put)
    assert count(store) == 1


@pytest.mark.faults("store: locked", quick=True)
def test_a_lock_on_everything_is_told_in_time(store: Store, path: Path) -> None:
    # Nobody is alone as long as another is connected: such a lock meets a node that starts.
    store.close()
    with held(path, *ALONE):
        for work in (lambda: store.transaction(put), lambda: count(store)):
            started = time.monotonic()
            with pytest.raises(Unavailable, match="The store refused a"):
                work()
            assert time.monotonic() - started < PATIENCE_S + 2
    assert count(store) == 1


@pytest.mark.faults("store: damaged", quick=True)
def test_a_damaged_file_is_the_stores_fault(store: Store, path: Path) -> None:
    store.close()
    path.write_bytes(b"SQLite format 3\0".ljust(100, b"\xff") + bytes(8192))
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
    with pytest.raises(Unavailable, match="The store failed"):
        store.transaction(put)
    path.write_bytes(b"no database at all".ljust(8192, b"."))
    with pytest.raises(Unavailable, match="The store failed: file is not a database"):
        count(store)
