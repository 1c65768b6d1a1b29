"""The JavaScript SDK v3: js/life.test.js, run by the Node.js that `make clients` installs."""

from __future__ import annotations

import re

from tests.clients.endpoint import NODE, ROOT, Endpoint

TESTS = ROOT / "tests/clients/js/life.test.js"


def test_a_whole_life_pages_and_refusals(endpoint: Endpoint) -> None:
    said = endpoint.run([NODE, "--test", "--test-reporter=tap", TESTS], deadline_s=120)
    counts = dict(re.findall(r"^# (tests|pass|skipped|todo) (\d+)$", said, re.MULTILINE))
    assert counts == {"tests": "3", "pass": "3", "skipped": "0", "todo": "0"}, said
