"""The page's own tests pass, and what it says of options and types is so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from appliance.cli.sandbox import sandbox as command
from appliance.instance_types import load
from appliance.run import run

PAGE = (Path(__file__).parents[2] / "docs/how-to/test-your-own-program.md").read_text()


def test_the_fixture_and_the_test_work(tmp_path: Path) -> None:
    shown = re.findall(r"`([\w.]+)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in shown] == ["conftest.py", "test_web_servers.py"]
    for name, text in shown:
        (tmp_path / name).write_text(text)
    printed = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        environment={"TMPDIR": str(tmp_path)},
        deadline_s=120,
    )
    assert "1 passed" in printed
    assert not list(tmp_path.glob("anynode-*"))


def test_every_option_is_there() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(--[\w-]+)`", row)}
    assert named == {option.opts[0] for option in command.params}


def test_types_of_the_page(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "types.toml").write_text(text)
    found = load(tmp_path / "types.toml")["x1.huge"]
    assert (found.vcpus, found.memory_mib, found.disk_gib) == (64, 976000, 100)
