"""The snippets of docs/how-to/use-your-client.md."""

from __future__ import annotations

import re

from tests.clients.endpoint import ROOT

PAGE = ROOT / "docs/how-to/use-your-client.md"


def languages() -> list[str]:
    """Return the languages of all snippets that are programs."""
    return re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)


def snippet(language: str) -> str:
    """Return the one snippet of a language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)
