"""A small file is there as a whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.files import write_whole


def test_it_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "id"
    write_whole(path, b"one", mode=0o640)
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o640
    write_whole(path, b"two", is_durable=False)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.write_bytes(b"theirs")
    (tmp_path / ".id.new").symlink_to(others)
    write_whole(tmp_path / "id", b"one")
    assert others.read_bytes() == b"theirs"
    assert (tmp_path / "id").read_bytes() == b"one"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"Could not write .*/id: No such file or directory\."):
        write_whole(tmp_path / "nowhere" / "id", b"one")
