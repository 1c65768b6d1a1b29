from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

from appliance.run import run
from appliance.testing.distribution import write_distribution

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/filter-reserved"
PAGE = ROOT / "docs/how-to/write-a-plugin.md"


class TestExample:
    def test_page_shows_the_files(self) -> None:
        shown = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
        assert [name for name, _ in shown] == [
            "pyproject.toml",
            "anynode_filter_reserved/__init__.py",
            "tests/test_filter_reserved.py",
        ]
        for name, text in shown:
            assert text == (EXAMPLE / name).read_text(), f"{name} differs from the page"

    def test_its_own_tests_pass(self, tmp_path: Path) -> None:
        copy = shutil.copytree(EXAMPLE, tmp_path / "example")
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
        write_distribution(copy, project["name"], project["entry-points"])
        printed = run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", copy],
            environment={"PYTHONPATH": str(copy)},
            deadline_s=120,
        )
        assert re.search(r"^\d\d passed", printed, re.MULTILINE), printed
