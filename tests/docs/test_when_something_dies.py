"""Every line of the page is tried by tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/how-to/when-something-dies.md"


def rows() -> list[str]:
    """Return the lines of the tables, without their heads."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith("| what dies")]


def links() -> dict[str, tuple[str, str]]:
    """Return the file and the test behind each number."""
    found = re.findall(r'^\[(\d+)\]: (\S+) "(\w+)"$', PAGE.read_text(), re.MULTILINE)
    return {number: (path, name) for number, path, name in found}


def test_each_line_says_all_and_names_a_test() -> None:
    known = links()
    assert len(rows()) > 20
    for row in rows():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 6, row
        named = re.findall(r"\[(\d+)\]", cells[-1])
        assert named, row
        assert {*named} <= {*known}, row


def test_the_tests_that_it_names_are_there() -> None:
    used = {number for row in rows() for number in re.findall(r"\[(\d+)\]", row)}
    assert used == {*links()}
    for path, name in links().values():
        text = (PAGE.parent / path).resolve().read_text()
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{path} has no {name}"
