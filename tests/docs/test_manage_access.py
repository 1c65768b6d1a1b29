"""Every ``anynode`` command of the page does what the page says, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.conftest import empty, shell
from tests.cli.shell import Shell

__all__ = ["empty", "shell"]

PAGE = Path(__file__).parents[2] / "docs/how-to/manage-access.md"


def commands() -> list[str]:
    """Return the commands of the page, those in its tables, too."""
    text = PAGE.read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    written = re.findall(r"^(anynode .*)$", blocks, re.MULTILINE)
    inline = re.findall(r"`(anynode [^`]+)`", text)
    return [*written, *inline]


def test_every_command_of_the_page_works(shell: Shell) -> None:
    shell.run("project", "create", "owner")
    image_id = shell.import_image()
    ran = set()
    for command in commands():
        words = shlex.split(command.partition(">")[0])[1:]
        is_only_named = len(words) == 2 and words[0] in ("key", "user", "project")
        if "--follow" in words or is_only_named:
            continue
        if words[:2] == ["key", "rotate"] or "AKIA…" in words:
            made = shell.json("key", "create", "ada", "web")
            words = [made["access_key_id"] if word == "AKIA…" else word for word in words]
        shell.run(*(image_id if word == "ami-…" else word for word in words))
        if words[:2] == ["project", "remove-user"]:
            shell.run("project", "add-user", "web", "ada")
        ran.add(" ".join(words[:2]))
    assert len(ran) > 15
