"""A journal that fails for a moment: what was to be written is not lost, nor half written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from appliance.compute.record import REPORT
from appliance.errors import Unavailable
from appliance.journal import Journal
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain

pytestmark = pytest.mark.faults("disk: journal", quick=True)


def failing(
    monkeypatch: pytest.MonkeyPatch, is_meant: Callable[[list[tuple[str, str, Any]]], bool]
) -> list[str]:
    """Let the next change that is meant fail; return what has failed."""
    change = Journal.change
    failed: list[str] = []

    def fail_once(self: Journal, changes: Iterable[tuple[str, str, Any]]) -> None:
        rows = list(changes)
        if not failed and is_meant(rows):
            failed.append(f"{rows}")
            raise Unavailable("Could not write the journal: database or disk is full.")
        change(self, rows)

    monkeypatch.setattr(Journal, "change", fail_once)
    return failed


def owes(state: str) -> Callable[[list[tuple[str, str, Any]]], bool]:
    """Return what recognizes the change that owes a report of a state."""
    return lambda rows: any(
        kind == REPORT and value is not None and value.report.state == state
        for kind, _, value in rows
    )


@pytest.mark.parametrize("state", ["running", "stopped", "gone"])
def test_a_report_is_owed_although_the_journal_failed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    failed = failing(monkeypatch, owes(state))
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    assert len(failed) == 1
    chain.assert_clean()


def test_why_it_went_off_is_known_although_the_journal_failed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    failed = failing(monkeypatch, owes("stopped"))
    chain.machine.compute.crash(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert len(failed) == 1
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert "it crashed" in instance.reason.message
    chain.assert_clean()


def test_why_a_start_failed_is_known_although_the_journal_failed(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain()
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    failed = failing(monkeypatch, owes("stopped"))
    chain.faults.fail_at("step.define.before")
    chain.start_instances(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    while not instance.reason:
        (instance,) = chain.wait_for("stopped", instance_id)
    assert len(failed) == 1
    assert "told to fail" in instance.reason.message
    chain.assert_clean()
