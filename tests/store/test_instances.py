"""Instances: which ones show no progress."""

from __future__ import annotations

import time

import pytest

from appliance.store import Transaction
from appliance.store import instances as instance_rows
from appliance.store.schema import instances
from tests.store.conftest import Site

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("ahead_s", "is_stuck"),
    [(-61.0, True), (-50.0, False), (0.0, False), (50.0, False), (86400.0, True)],
)
def test_who_shows_no_progress(site: Site, ahead_s: float, *, is_stuck: bool) -> None:
    """Progress in the future is of before the clock went back; a little is another node's clock."""

    def launch(tx: Transaction) -> str:
        (instance_id,) = site.launch(tx)
        tx.execute(instances.update().values(progress_at=tx.now + ahead_s))
        return instance_id

    instance_id = site.store.transaction(launch)
    found = site.store.read(lambda tx: instance_rows.without_progress(tx, time.time() - PATIENCE_S))
    assert [one.instance_id for one in found] == [instance_id] * is_stuck


def test_many_that_hang_hide_nobody(site: Site) -> None:
    """What a dead node holds may hang for ever; the sweep still comes to all others."""

    def launch(tx: Transaction) -> set[str]:
        ids = set(site.launch(tx, 600))
        tx.execute(instances.update().values(progress_at=tx.now - 2 * PATIENCE_S))
        return ids

    ids = site.store.transaction(launch)
    found = site.store.read(lambda tx: instance_rows.without_progress(tx, time.time() - PATIENCE_S))
    assert {one.instance_id for one in found} == ids
