from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
from anynode_observer_jsonl import JsonLines

from appliance.errors import ConfigError
from appliance.hooks import Observers
from appliance.model import TimelineEntry
from appliance.plugin_loader import PluginLoader
from appliance.testing.observer import ObserverContract, make_entry


class TestJsonLines(ObserverContract, plugin="jsonl"):
    def test_each_line_is_an_entry(self, driver: Observers, made: JsonLines) -> None:
        entries = [make_entry(1), make_entry(2, outcome="failed")]
        for entry in entries:
            driver.instance_event(entry)
        lines = made.path.read_bytes().splitlines()
        assert [msgspec.json.decode(line, type=TimelineEntry) for line in lines] == entries
        assert made.path.stat().st_mode & 0o777 == 0o600


class TestFile:
    def test_a_full_file_becomes_the_older_one(self, tmp_path: Path) -> None:
        path = tmp_path / "timeline.jsonl"
        observer = JsonLines(path, max_bytes=1)
        for number in range(3):
            observer.observer_instance_event(make_entry(number))
        assert not path.exists()
        older = path.with_name("timeline.jsonl.1").read_bytes()
        assert msgspec.json.decode(older, type=TimelineEntry) == make_entry(2)

    def test_a_failure_is_found_until_a_line_gets_through(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "missing" / "timeline.jsonl"
        observers = Observers({"jsonl": JsonLines(path, max_bytes=1000)})
        with caplog.at_level(logging.ERROR):
            observers.instance_event(make_entry())
        assert "Could not append" in caplog.text
        [finding] = observers.node_check()
        assert str(path) in finding.message
        path.parent.mkdir()
        observers.instance_event(make_entry())
        assert observers.node_check() == []

    def test_path_must_be_absolute(self, tmp_path: Path) -> None:
        loader = PluginLoader(
            node_name="node-1",
            state_dir=tmp_path,
            run_dir=tmp_path,
            settings=lambda group, name: {"path": "here.jsonl"},
        )
        with pytest.raises(ConfigError, match=r"not absolute: 'here\.jsonl'"):
            loader.create("appliance.observer", "jsonl")
