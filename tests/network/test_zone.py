"""What an instance is told of its zone is its node's, whoever answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import Transaction
from appliance.store import instances as instance_rows
from tests.store.conftest import Site, make_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(f"sqlite:///{tmp_path}/store.sqlite")
    yield made
    made.store.close()


def test_the_zone_of_an_instance_is_that_of_its_node(site: Site) -> None:
    node_id = site.add_node("a")

    def place(tx: Transaction) -> tuple[str, str, str]:
        (instance_id,) = site.launch(tx)
        before = instance_rows.specs(tx, [instance_id])[instance_id].zone
        instance_rows.placed(tx, [(instance_id, 1, node_id)])
        spec = instance_rows.specs(tx, [instance_id])[instance_id]
        binding = instance_rows.bind(tx, instance_id, 1, region="r", quarantine_s=0.0)
        return before, spec.zone, binding.metadata.zone

    assert site.store.transaction(place) == ("", "z", "z")
