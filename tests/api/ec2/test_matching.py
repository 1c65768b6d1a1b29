"""Wildcards in filters over what is not in the store."""

from __future__ import annotations

import subprocess
import sys

import pytest

from appliance.api.ec2.matching import matches
from appliance.store.filters import Filter

LIMIT_S = 20


@pytest.mark.parametrize(
    ("value", "text", "fits"),
    [
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("**", "any\nthing", True),
        ("a*", "abc", True),
        ("a*", "ba", False),
        ("*c", "abcbc", True),
        ("*c", "abcd", False),
        ("*b*", "abc", True),
        ("*a*b*c", "xaxbxbxc", True),
        ("*a*b*c", "xbxaxc", False),
        ("a*b?d*f", "axxbcdbxdf", True),
        ("*ab", "aab", True),
        ("*a?*b", "aaab", True),
        ("a*a", "a", False),
        ("?", "ab", False),
        (r"\*", "*", True),
        (r"\*", "a", False),
        (r"a*\?", "ab?", True),
        ("a.c*", "abc", False),
    ],
)
def test_wildcards(value: str, text: str, fits: bool) -> None:
    assert matches([Filter("name", [value])], {"name": [text]}) is fits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("*" * 40 + "X", "availability-zone"),
        ("*" * 1000 + "X", "a" * 260),
        ("*a" * 5 + "*b", "a" * 260),
        ("*a" * 500 + "*b", "a" * 260),
        ("*?" * 100 + "*b*c", "a" * 260),
    ],
)
def test_no_value_makes_the_search_long(value: str, text: str) -> None:
    # A search that hangs holds the interpreter: only a process of its own can be ended.
    program = (
        "import sys, time\n"
        "from appliance.api.ec2.matching import matches\n"
        "from appliance.store.filters import Filter\n"
        "begun = time.process_time()\n"
        "assert not matches([Filter('name', [sys.argv[1]])], {'name': [sys.argv[2]]})\n"
        "assert time.process_time() - begun < 1\n"
    )
    subprocess.run([sys.executable, "-c", program, value, text], check=True, timeout=LIMIT_S)
