"""How the build of the demo image behaves: cached, failing, interrupted, run by anybody."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "image/demo/build.py"
CACHED = Path("/var/cache/anynode/demo-image")


def with_apt_get(folder: Path, script: str) -> dict[str, str]:
    """Return an environment in which apt-get is a script of ours."""
    fake = folder / "apt-get"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def contents(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.node
def test_nothing_is_done_twice() -> None:
    subprocess.run([BUILD, "--output", CACHED], check=True)
    before = {path: path.stat().st_mtime_ns for path in CACHED.iterdir()}
    again = subprocess.run([BUILD, "--output", CACHED], check=True, capture_output=True, text=True)
    assert again.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in CACHED.iterdir()} == before


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "out/.image-abc12_xy/debs").mkdir(parents=True)
    (tmp_path / "out/.image-two-abc12_xy").mkdir()
    subprocess.run(
        [BUILD, "--output", tmp_path / "out/image"],
        env=with_apt_get(tmp_path / "bin", "exit 100"),
        capture_output=True,
    )
    assert contents(tmp_path / "out") == {".image.lock", ".image-two-abc12_xy"}


def test_a_failed_download_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    failed = subprocess.run(
        [BUILD, "--output", tmp_path / "out/image"],
        env=with_apt_get(tmp_path / "bin", "echo 'E: the archive is gone' >&2; exit 100"),
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert "E: the archive is gone" in failed.stderr
    assert "apt-get update" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert contents(tmp_path / "out") == {".image.lock"}


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, signal_number: int) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    started = tmp_path / "started"
    # Python takes no notice of SIGINT when whoever started the tests in the background ignores it.
    build = subprocess.Popen(
        ["env", "--default-signal=INT", BUILD, "--output", tmp_path / "out/image"],
        env=with_apt_get(tmp_path / "bin", f"touch {started}; exec sleep 60"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not started.exists() and time.monotonic() < end:
            time.sleep(0.05)
        build.send_signal(signal_number)
        _, errors = build.communicate(timeout=30)
    finally:
        build.kill()
    assert build.returncode == 1
    assert "interrupted" in errors
    assert contents(tmp_path / "out") == {".image.lock"}


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    refused = subprocess.run([BUILD, "--output", tmp_path], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "choose an empty or new folder" in refused.stderr
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.node
def test_whoever_builds_it_root_owns_its_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    raw = tmp_path / "root.raw"
    out = Path("/var/tmp") / f"anynode-test-{os.getpid()}"
    out.mkdir()
    try:
        os.chown(out, 65534, 65534)
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        # A copy, because the checkout may be where nobody else can read.
        subprocess.run(["cp", "-r", BUILD.parent, out / "source"], check=True)
        subprocess.run([*nobody, out / "source/build.py", "--output", out / "image"], check=True)
        disk = out / "image/root.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    finally:
        subprocess.run(["rm", "-rf", out], check=True)
    listed = subprocess.run(
        ["debugfs", "-R", "ls -l /etc", raw], capture_output=True, text=True, check=True
    ).stdout
    owners = {line.split()[3] for line in listed.splitlines() if line.strip()}
    assert owners == {"0"}
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True).returncode == 0
