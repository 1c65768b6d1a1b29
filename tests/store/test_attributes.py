"""What owners change of instances: groups, options, and what waits for the next start."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from appliance.store import Transaction, attributes, groups
from appliance.store.schema import (
    instances,
    policy_changes,
    policy_confirmations,
    port_groups,
    ports,
)
from tests.store.conftest import Site


def new_group(site: Site, name: str) -> str:
    return site.store.transaction(
        lambda tx: groups.create(tx, site.project_id, site.vpc_id, name, "a group").group_id
    )


def launch(site: Site, *, binds: bool) -> tuple[str, str]:
    """Return an instance, and its address or nothing."""

    def write(tx: Transaction) -> tuple[str, str]:
        (instance_id,) = site.launch(tx)
        return instance_id, site.bind(tx, instance_id)[0] if binds else ""

    return site.store.transaction(write)


def members(site: Site, instance_id: str) -> set[str]:
    query = (
        select(port_groups.c.group_id)
        .join(ports, ports.c.id == port_groups.c.port_id)
        .where(ports.c.instance_id == instance_id)
    )
    return site.store.read(lambda tx: set(tx.execute(query).scalars()))


def change_groups(site: Site, instance_id: str, *group_ids: str) -> tuple[list[Any], list[Any]]:
    """Return what was noted, and what was announced."""
    told: list[Any] = []

    def change(tx: Transaction) -> int:
        newest = tx.execute(select(policy_changes.c.id).order_by(policy_changes.c.id.desc()))
        before = newest.scalars().first() or 0
        attributes.set_groups(tx, instance_id, list(group_ids))
        told.extend(tx.news)
        return before

    before = site.store.transaction(change)
    query = select(policy_changes).where(policy_changes.c.id > before).order_by(policy_changes.c.id)
    rows = site.store.read(lambda tx: tx.execute(query).all())
    return [(row.kind, row.subject, row.address) for row in rows], told


def test_a_bound_port_leaves_and_joins_under_one_revision(site: Site) -> None:
    one, two = new_group(site, "one"), new_group(site, "two")
    instance_id, address = launch(site, binds=True)
    enforcing = {"network_id": site.network_id, "node_id": site.add_node("a"), "revision": 0}
    site.store.transaction(lambda tx: tx.execute(policy_confirmations.insert().values(enforcing)))
    noted, told = change_groups(site, instance_id, one, two)
    assert members(site, instance_id) == {one, two}
    assert noted[0][0] == "port"
    assert set(noted[1:]) == {
        ("left", site.group_id, address),
        ("joined", one, address),
        ("joined", two, address),
    }
    assert told == [f"members of {site.network_id}"]
    noted, _ = change_groups(site, instance_id, two)
    assert noted[1:] == [("left", one, address)]


def test_the_same_groups_are_no_change(site: Site) -> None:
    instance_id, _ = launch(site, binds=True)
    assert change_groups(site, instance_id, site.group_id) == ([], [])


def test_a_port_that_was_never_bound_is_told_when_it_is(site: Site) -> None:
    one = new_group(site, "one")
    instance_id, _ = launch(site, binds=False)
    assert change_groups(site, instance_id, one) == ([], [])
    assert members(site, instance_id) == {one}


def test_options_are_merged_and_defaults_left_out(site: Site) -> None:
    instance_id, _ = launch(site, binds=False)

    def change(tx: Transaction) -> None:
        attributes.set_options(tx, [instance_id], {"a": True, "b": "x"})
        attributes.set_options(tx, [instance_id], {"a": False, "c": 1})
        attributes.set_options(tx, [instance_id], {"b": None})

    site.store.transaction(change)
    assert site.store.read(lambda tx: attributes.options(tx, instance_id)) == {"c": 1}


def test_what_the_next_start_goes_by_is_set_only_while_stopped(site: Site) -> None:
    instance_id, _ = launch(site, binds=False)

    def set_type(**now: Any) -> bool:
        def change(tx: Transaction) -> bool:
            tx.execute(update(instances).values(**now))
            return attributes.set_while_stopped(tx, instance_id, {"vcpus": 7})

        return site.store.transaction(change)

    assert not set_type(state="pending")
    assert not set_type(state="stopping", is_counted=False)
    assert not set_type(state="stopped", is_counted=True)
    assert set_type(state="stopped", is_counted=False)
