"""Overlays, which qemu-img must take for its own, and the rule that nobody calls it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import appliance
from appliance.errors import (
    Conflict,
    InputError,
    LimitExceeded,
    Unavailable,
)
from appliance.images import qcow2
from appliance.images.disk import create_overlay

GIB = 1 << 30
ROOT = Path(appliance.__file__).parent.parent
MakeImage = Callable[..., Path]

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


def facts(path: Path) -> dict[str, object]:
    command = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    found = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    return dict(json.loads(found))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "i-1"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_overlay_of_the_images_own_size(
    make_image: MakeImage, home: Path, image_format: str
) -> None:
    base = make_image("base", image_format, "1G")
    assert create_overlay(home / "disk.qcow2", base, image_format) == GIB
    found = facts(home / "disk.qcow2")
    assert found["virtual-size"] == GIB
    assert found["backing-filename"] == str(base)
    assert found["backing-filename-format"] == image_format
    assert (home / "disk.qcow2").stat().st_mode & 0o777 == 0o600
    assert files_in(home) == ["disk.qcow2"]


def test_overlay_is_grown(make_image: MakeImage, home: Path) -> None:
    base = make_image("base", "qcow2", "1G")
    assert create_overlay(home / "disk.qcow2", base, "qcow2", 64 * 1024 * GIB) == 65536 * GIB
    assert facts(home / "disk.qcow2")["virtual-size"] == 65536 * GIB
    assert create_overlay(home / "equal.qcow2", base, "qcow2", GIB) == GIB


def test_image_larger_than_the_disk(make_image: MakeImage, home: Path) -> None:
    base = make_image("base", "qcow2", "20G")
    with pytest.raises(LimitExceeded, match=r"20\.0 GiB.*10\.0 GiB"):
        create_overlay(home / "disk.qcow2", base, "qcow2", 10 * GIB)
    assert files_in(home) == []


def test_existing_overlay_is_kept_with_its_contents(make_image: MakeImage, home: Path) -> None:
    base = make_image("base", "raw", "64M")
    path = home / "disk.qcow2"
    create_overlay(path, base, "raw")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4096", str(path)]
    subprocess.run(write, check=True, capture_output=True, timeout=30)
    before = path.read_bytes()
    assert create_overlay(path, base, "raw", GIB) == 64 << 20
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", bytes(4096)])
def test_cut_overlay_is_made_anew(make_image: MakeImage, home: Path, content: bytes) -> None:
    base = make_image("base", "raw", "64M")
    path = home / "disk.qcow2"
    path.write_bytes(content)
    (home / ".disk.qcow2.partial").write_bytes(b"of an earlier try")
    assert create_overlay(path, base, "raw") == 64 << 20
    assert facts(path)["virtual-size"] == 64 << 20
    assert files_in(home) == ["disk.qcow2"]


def test_foreign_file_is_not_overwritten(make_image: MakeImage, home: Path) -> None:
    base = make_image("base", "raw", "64M")
    other = make_image("other", "raw", "64M")
    path = home / "disk.qcow2"
    path.write_bytes(os.urandom(1 << 20))
    before = path.read_bytes()
    with pytest.raises(Conflict, match="in the way"):
        create_overlay(path, base, "raw")
    assert path.read_bytes() == before
    path.unlink()
    create_overlay(path, other, "raw")
    with pytest.raises(Conflict, match="is an overlay of"):
        create_overlay(path, base, "raw")
    path.unlink()
    shutil.copy(make_image("plain.qcow2", "qcow2", "64M"), path)
    with pytest.raises(Conflict, match="overlay of nothing"):
        create_overlay(path, base, "raw")


@pytest.mark.parametrize("size_bytes", [512, 1 << 29, (1 << 29) + 512, 20 * GIB, 65536 * GIB])
def test_overlay_is_as_qemu_img_makes_it(
    make_image: MakeImage, home: Path, size_bytes: int
) -> None:
    base = make_image("base", "raw", "512")
    ours, theirs = home / "ours.qcow2", home / "theirs.qcow2"
    create_overlay(ours, base, "raw", size_bytes)
    create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base)]
    subprocess.run([*create, str(theirs), str(size_bytes)], check=True, timeout=30)
    different = {"filename", "actual-size", "dirty-flag", "children"}
    assert {name: value for name, value in facts(ours).items() if name not in different} == {
        name: value for name, value in facts(theirs).items() if name not in different
    }
    check = ["qemu-img", "check", "-q", "-f", "qcow2", str(ours)]
    subprocess.run(check, check=True, timeout=30)
    if size_bytes >= GIB:
        write = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {size_bytes - 4096} 4096", str(ours)]
        subprocess.run(write, check=True, capture_output=True, timeout=30)
        subprocess.run(check, check=True, timeout=30)


def test_disk_without_end(make_image: MakeImage, home: Path) -> None:
    base = make_image("base", "raw", "64M")
    with pytest.raises(InputError, match="is not possible"):
        create_overlay(home / "disk.qcow2", base, "raw", (2 << 50) + 512)
    assert files_in(home) == []


def test_only_the_size_of_the_base_is_read(make_image: MakeImage, home: Path) -> None:
    """A base that qemu-img would refuse does not matter: only our parser reads it."""
    base = make_image("base", "qcow2", "64M")
    content = bytearray(base.read_bytes())
    content[56:60] = b"\xff" * 4
    base.write_bytes(content)
    assert subprocess.run(["qemu-img", "info", "-f", "qcow2", base], capture_output=True).returncode
    assert create_overlay(home / "disk.qcow2", base, "qcow2") == 64 << 20


def test_odd_names(make_image: MakeImage, tmp_path: Path) -> None:
    folder = tmp_path / "a,b=c:d 'e' json:{}"
    folder.mkdir()
    base = make_image("base", "raw", "64M").rename(folder / "base:x,y")
    create_overlay(folder / "disk:1,2.qcow2", base, "raw")
    assert facts(folder / "disk:1,2.qcow2")["backing-filename"] == str(base)


def test_wrong_calls(make_image: MakeImage, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_image("base", "raw", "64M")
    with pytest.raises(InputError, match="kernel"):
        create_overlay(home / "disk.qcow2", base, "kernel")
    with pytest.raises(InputError, match="absolute"):
        create_overlay(Path("disk.qcow2"), base, "raw")
    with pytest.raises(InputError, match="Could not open"):
        create_overlay(home / "disk.qcow2", home / "missing", "raw")
    monkeypatch.chdir(home)
    with pytest.raises(InputError, match="absolute"):
        create_overlay(home / "disk.qcow2", Path("base"), "raw")
    assert files_in(home) == []


def test_failure_leaves_nothing(
    make_image: MakeImage, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_image("base", "raw", "64M")

    def fill(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(qcow2, "write_overlay", fill)
        with pytest.raises(Unavailable, match="No space left"):
            create_overlay(home / "disk.qcow2", base, "raw")
    assert files_in(home) == []

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="Input/output error"):
        create_overlay(home / "disk.qcow2", base, "raw")
    assert files_in(home) == []


def mentions(source: Path) -> bool:
    """Say whether the code, not its prose, names qemu-img as a program."""
    return any(
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value.split() or [""])[0].rpartition("/")[2] == "qemu-img"
        for node in ast.walk(ast.parse(source.read_text()))
    )


def test_nothing_calls_qemu_img() -> None:
    sources = [
        path
        for folder in ("appliance", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.parts
    ]
    assert len(sources) > 50
    assert [path for path in sources if mentions(path)] == []
