"""Contract of observer plugins: ``class TestMine(ObserverContract, plugin="mine"): ...``."""

from __future__ import annotations

import logging
import time

import pytest

from appliance.hooks import Observers
from appliance.model import TimelineEntry
from appliance.testing.plugin import PluginContract


def make_entry(number: int = 1, outcome: str = "ok") -> TimelineEntry:
    """Return one step of a launch."""
    return TimelineEntry(
        instance_id=f"i-{number:017x}",
        epoch=1,
        request_id="00000000-0000-4000-8000-000000000000",
        node="node-1",
        role="compute",
        name="start",
        started_at=1_600_000_000.0,
        duration_ms=12.5,
        outcome=outcome,
        causes=() if outcome == "ok" else ("Could not start i-1.", "Command failed."),
    )


class ObserverContract(PluginContract):
    """What the node relies on: an observer neither fails nor holds anybody up."""

    group = "appliance.observer"

    @pytest.fixture
    def driver(self, made: object) -> Observers:
        """Return the plugin as the node calls it."""
        return Observers({self.plugin: made})

    @pytest.fixture(autouse=True)
    def _no_error_is_logged(self, caplog: pytest.LogCaptureFixture) -> object:
        yield
        failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert not failures, caplog.text

    def test_learns_of_all_outcomes(self, driver: Observers) -> None:
        for outcome in ("ok", "failed", "undone", "refused", "skipped"):
            driver.instance_event(make_entry(outcome=outcome))

    def test_same_event_twice_does_no_harm(self, driver: Observers) -> None:
        driver.instance_event(make_entry())
        driver.instance_event(make_entry())

    def test_holds_nobody_up(self, driver: Observers) -> None:
        before = time.monotonic()
        for number in range(20):
            driver.instance_event(make_entry(number))
        assert (time.monotonic() - before) / 20 < 0.1

    def test_findings_have_code_level_and_sentence(self, driver: Observers) -> None:
        for finding in driver.node_check():
            assert finding.code
            assert finding.level in ("error", "warning")
            assert finding.message
