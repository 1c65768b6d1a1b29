"""The plugin that a contract is run against: by its short name, as a node would load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from appliance.plugin_loader import PluginLoader

RecordProperty = Callable[[str, object], None]
"""pytest's fixture ``record_property``: a figure for the report of a run."""


class PluginContract:
    """Base of the contracts of groups whose plugins need nothing but settings.

    A subclass says which plugin is meant, in one line: ``class TestMine(FilterContract,
    plugin="mine"): ...``; ``settings`` are those of the plugin, the defaults when not given.
    """

    plugin: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}
    group: ClassVar[str] = ""

    def __init_subclass__(
        cls, plugin: str = "", settings: Mapping[str, Any] | None = None, **rest: Any
    ) -> None:
        super().__init_subclass__(**rest)
        if plugin:
            cls.plugin = plugin
        if settings is not None:
            cls.settings = settings

    @pytest.fixture
    def loader(self, tmp_path: Path) -> PluginLoader:
        """Return a loader of installed plugins; only the plugin under test has settings."""
        return PluginLoader(
            node_name="node-1",
            state_dir=tmp_path / "state",
            run_dir=tmp_path / "run",
            settings=lambda group, name: (
                self.settings if (group, name) == (self.group, self.plugin) else {}
            ),
        )

    @pytest.fixture
    def made(self, loader: PluginLoader) -> object:
        """Return what the plugin's ``create`` returns."""
        return loader.create(self.group, self.plugin)
