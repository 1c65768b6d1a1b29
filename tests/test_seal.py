"""What is sealed opens with the same keys and for the same purpose, and never otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import seal
from appliance.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seal.json"


def test_a_key_file_is_made_once_and_is_its_owners_alone(path: Path) -> None:
    closed = seal.load(path).close(b"secret", "key:1")
    assert path.stat().st_mode & 0o777 == 0o600
    assert seal.load(path).open(closed, "key:1") == b"secret"
    assert list(path.parent.iterdir()) == [path]


def test_the_clear_text_is_not_in_the_sealed_one(path: Path) -> None:
    one = seal.load(path)
    first, second = one.close(b"secret", "key:1"), one.close(b"secret", "key:1")
    assert b"secret" not in first
    assert first != second


def test_another_purpose_does_not_open(path: Path) -> None:
    one = seal.load(path)
    with pytest.raises(ConfigError, match="altered"):
        one.open(one.close(b"secret", "key:1"), "key:2")


@pytest.mark.parametrize("position", [0, 1, 5, 20, -1])
def test_an_altered_byte_does_not_open(path: Path, position: int) -> None:
    one = seal.load(path)
    closed = bytearray(one.close(b"secret", "key:1"))
    closed[position] ^= 1
    with pytest.raises(ConfigError):
        one.open(bytes(closed), "key:1")


def test_a_short_value_does_not_open(path: Path) -> None:
    one = seal.load(path)
    for length in range(5, 18):
        with pytest.raises(ConfigError):
            one.open(one.close(b"", "key:1")[:length], "key:1")


def test_after_a_rotation_old_values_open_and_new_ones_need_the_new_key(path: Path) -> None:
    old = seal.load(path)
    before = old.close(b"before", "key:1")
    new = seal.rotate(path)
    after = new.close(b"after", "key:1")
    assert new.open(before, "key:1") == b"before"
    assert seal.load(path).open(after, "key:1") == b"after"
    with pytest.raises(ConfigError, match="key file"):
        old.open(after, "key:1")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_others_may_read_is_refused(path: Path) -> None:
    seal.load(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="open to others"):
        seal.load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"current": "a", "keys": 1}'])
def test_a_damaged_key_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="damaged"):
        seal.load(path)


def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        seal.load(path.parent / "missing" / "seal.json")
