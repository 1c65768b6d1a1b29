"""What was set aside stays for so long and no longer, and what is nobody's stays for ever."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from appliance.compute import attic

DAY_S = 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an instance, with a disk."""
    made = tmp_path / "instances" / "i-1"
    made.mkdir(parents=True)
    (made / "disk").write_bytes(b"of value")
    return made


def test_it_goes_when_it_is_old_enough(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = attic.set_aside(tmp_path, folder)
    assert kept is not None
    assert (kept / "disk").read_bytes() == b"of value"
    now = time.time()
    assert attic.clear(tmp_path, 30 * DAY_S, now + 29.9 * DAY_S) == ()
    assert kept.exists()
    assert attic.clear(tmp_path, 30 * DAY_S, now + 30.1 * DAY_S) == (kept.name,)
    assert not kept.exists()
    assert f"deleted {kept.name}, which was set aside 30 days ago" in caplog.text


@pytest.mark.parametrize("name", ["i-1", "i-1.mine", "i-1.20200101T000000", "i-1.2020-01-01"])
def test_what_somebody_else_put_there_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "attic" / name).mkdir(parents=True)
    assert attic.clear(tmp_path, DAY_S, time.time()) == ()
    assert (tmp_path / "attic" / name).is_dir()


def test_there_need_be_none(tmp_path: Path) -> None:
    assert attic.clear(tmp_path, DAY_S, time.time()) == ()


def test_one_that_cannot_be_deleted_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("i-1.20200101T000000-000001", "i-2.20200101T000000-000001")
    for name in names:
        (tmp_path / "attic" / name).mkdir(parents=True)
    delete = shutil.rmtree

    def refuse_the_first(path: Path) -> None:
        if path.name == names[0]:
            raise OSError(30, os.strerror(30))
        delete(path)

    monkeypatch.setattr(shutil, "rmtree", refuse_the_first)
    assert attic.clear(tmp_path, DAY_S, time.time()) == names[1:]
    assert "could not delete" in caplog.text
    assert "Read-only file system" in caplog.text
