"""The set-up of what the bench compares with: when it does nothing, and how it fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "setup"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up in it, for which no package can be found."""
    (tmp_path / "setup").mkdir()
    shutil.copy(SETUP / "bench.py", tmp_path / "setup")
    (tmp_path / "setup/requirements-bench.txt").write_text(f"pip==0.0.0 --hash=sha256:{0:064}\n")
    return tmp_path


def set_up(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up without a network."""
    return subprocess.run(
        [sys.executable, checkout / "setup/bench.py"],
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_failure_is_told_and_not_taken_for_done(checkout: Path) -> None:
    done = set_up(checkout)
    assert done.returncode == 1
    assert "Check the network and the settings of pip" in done.stderr
    assert "No matching distribution found for pip==0.0.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout / "var/bench-peers/made-from").exists()


def test_nothing_is_done_when_everything_is_there(checkout: Path) -> None:
    words = "import sys; sys.path.insert(0, 'setup'); import bench; print(bench.digest())"
    asked = [sys.executable, "-c", words]
    digest = subprocess.run(asked, cwd=checkout, capture_output=True, text=True, check=True).stdout
    stamp = checkout / "var/bench-peers/made-from"
    stamp.parent.mkdir(parents=True)
    stamp.write_text(digest.strip())
    done = set_up(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
