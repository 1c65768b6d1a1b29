from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from appliance.hooks import hook_names
from appliance.hookspecs import GROUPS
from appliance.reference import PAGES

FOLDER = Path(__file__).parents[1] / "docs/reference"
HOOKS = [(group, name) for group in GROUPS for name in hook_names(group)]


class TestPages:
    @pytest.mark.parametrize("name", sorted(PAGES))
    def test_page_is_what_the_code_says(self, name: str) -> None:
        written = (FOLDER / name).read_text(encoding="utf-8")
        assert written == PAGES[name](), (
            f"{name} is stale: run `python -m appliance.reference docs/reference`"
        )

    def test_each_hook_has_its_heading(self) -> None:
        page = PAGES["hooks.md"]()
        for _, name in HOOKS:
            assert f"\n### {name}\n" in page

    def test_values_of_values_are_there(self) -> None:
        page = PAGES["hooks.md"]()
        for value in ("PlacementRequest", "Candidate", "ImageRef", "PowerState"):
            named = f"\n### {value}\n" in page
            assert named == (value != "ImageRef"), "ImageRef crosses no hook"


class TestContracts:
    """What a page cannot show, a docstring must say, and it must say it of what is there."""

    @pytest.mark.parametrize(("group", "name"), HOOKS)
    def test_docstring_fits_the_signature(self, group: str, name: str) -> None:
        hook = vars(GROUPS[group])[name]
        text = inspect.getdoc(hook) or ""
        assert text, f"{name} has no contract"
        arguments = set(inspect.signature(hook).parameters) - {"self"}
        assert set(re.findall(r":param (\w+):", text)) <= arguments
        if inspect.signature(hook).return_annotation == "None":
            assert ":returns:" not in text
        for error in re.findall(r":raises (\w+):", text):
            assert hasattr(__import__("appliance.errors").errors, error)

    @pytest.mark.parametrize("group", sorted(GROUPS))
    def test_group_says_its_kind(self, group: str) -> None:
        text = inspect.getdoc(GROUPS[group]) or ""
        assert text.startswith(f"Group ``{group}``: ")
