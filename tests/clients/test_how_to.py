"""The snippets of docs/how-to/use-your-client.md; Ansible's is played in test_ansible.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.clients.endpoint import AWS, NODE, ROOT, Endpoint
from tests.clients.how_to import languages, snippet

INSTANCE = re.compile(r"\bi-[0-9a-f]{17}\b")
ADDRESS = re.compile(r"\b172\.31\.\d+\.\d+\b")


def test_every_snippet_is_run() -> None:
    assert languages() == ["sh", "python", "js", "yaml"]


def test_aws_cli(endpoint: Endpoint) -> None:
    words = ["/bin/sh", "-euc", snippet("sh")]
    said = endpoint.run(words, deadline_s=120, PATH=f"{AWS.parent}:/usr/bin:/bin")
    assert INSTANCE.search(said), said
    assert ADDRESS.search(said), said


def test_boto3(endpoint: Endpoint) -> None:
    said = endpoint.run([sys.executable, "-c", snippet("python")])
    assert INSTANCE.search(said), said
    assert ADDRESS.search(said), said


def test_javascript(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "tests/clients/js/node_modules")
    program = tmp_path / "launch.mjs"
    program.write_text(snippet("js"))
    assert INSTANCE.search(endpoint.run([NODE, program]))
