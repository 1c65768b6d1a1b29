"""The journal keeps what it has said it keeps, all of a change or nothing, for its owner alone."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.errors import Unavailable
from appliance.journal import Journal, read_journal


class Note(msgspec.Struct, frozen=True, kw_only=True):
    text: str


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    yield made
    made.close()


def test_put_get_delete(journal: Journal) -> None:
    assert journal.get("a", "1", Note) is None
    journal.put("a", "1", Note(text="one"))
    journal.put("a", "2", Note(text="two"))
    journal.put("b", "1", Note(text="other"))
    journal.put("a", "1", Note(text="ONE"))
    assert journal.all("a", Note) == {"1": Note(text="ONE"), "2": Note(text="two")}
    journal.delete("a", "1")
    journal.delete("a", "1")
    assert journal.get("a", "1", Note) is None
    assert journal.get("b", "1", Note) == Note(text="other")


def test_it_is_there_without_a_close(journal: Journal, path: Path) -> None:
    journal.put("a", "1", Note(text="one"))
    other = Journal(path)
    assert other.get("a", "1", Note) == Note(text="one")
    other.close()


def test_all_of_a_change_or_nothing(journal: Journal) -> None:
    class Unwritable(msgspec.Struct):
        value: object

    journal.put("a", "1", Note(text="one"))
    with pytest.raises(TypeError):
        journal.change([("a", "1", None), ("a", "2", Unwritable(value=object()))])
    assert journal.all("a", Note) == {"1": Note(text="one")}
    journal.put("a", "3", Note(text="three"))
    assert set(journal.all("a", Note)) == {"1", "3"}


def test_its_files_are_its_owners_alone(journal: Journal, path: Path) -> None:
    journal.put("a", "1", Note(text="secret"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_file_that_is_no_journal(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(Unavailable, match="Could not open"):
        Journal(path)
    with pytest.raises(Unavailable, match="Could not read"):
        read_journal(path)
    with pytest.raises(Unavailable):
        Journal(path / "below")


def test_after_the_close(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    with pytest.raises(Unavailable):
        journal.put("a", "1", Note(text="one"))
    with pytest.raises(Unavailable):
        journal.get("a", "1", Note)
    journal.close()


def test_reading_does_not_disturb(journal: Journal, path: Path) -> None:
    journal.put("a", "1", Note(text="one"))
    journal._connection.execute("BEGIN IMMEDIATE")
    assert read_journal(path) == {"a": {"1": b'{"text":"one"}'}}
    journal._connection.execute("ROLLBACK")
    assert read_journal(path.with_name("none.sqlite")) == {}
    assert not path.with_name("none.sqlite").exists()
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    journal.put("a", "2", Note(text="two"))
    reader.close()
