"""A project takes along what it has, and the next one of its id inherits nothing."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import Table, insert, select, text, update
from sqlalchemy.schema import DropConstraint

from appliance.errors import Conflict
from appliance.store import (
    Transaction,
    groups,
    history,
    identity,
    image_shares,
    images,
    instances,
    key_pairs,
    tags,
)
from appliance.store.images import MACHINE, NewImage
from appliance.store.schema import audit, metadata
from appliance.store.schema import instances as instance_rows
from tests.store.conftest import Site

QUOTA = {"instances": 3}


def delete(site: Site) -> None:
    site.store.transaction(lambda tx: identity.delete_project(tx, "alpha"))


def make_again(site: Site) -> None:
    site.store.transaction(lambda tx: identity.create_project(tx, "beta", QUOTA, site.project_id))


def left_of(site: Site) -> set[str]:
    """Return the names of the tables that have rows of the project."""

    def find(tx: Transaction) -> set[str]:
        return {
            table.name
            for table in metadata.sorted_tables
            if "project_id" in table.c
            and tx.execute(select(table).where(table.c.project_id == site.project_id)).first()
        }

    return site.store.read(find)


def end_image(site: Site) -> None:
    site.store.transaction(lambda tx: images.delete(tx, site.image_id))


def test_key_pairs_groups_tags_and_shares_go_with_it(site: Site) -> None:
    def prepare(tx: Transaction) -> None:
        pair = key_pairs.create(
            tx, site.project_id, name="k", kind="rsa", fingerprint="f", public_key="ssh-rsa A k"
        )
        tags.add(tx, site.project_id, "key-pair", [pair.key_pair_id], {"a": "b"})
        group = groups.find(tx, site.project_id, ids=[site.group_id])[0]
        rule = groups.Match(
            protocol=6, from_port=1, to_port=2, cidr="", source_group_id=site.group_id
        )
        groups.add_rules(tx, group, is_egress=False, rules=[(rule, "")])
        new = NewImage(
            project_id="0" * 12, kind=MACHINE, name="n", format="raw", sha256="1", size_bytes=1
        )
        image_shares.share(tx, images.create(tx, new).image_id, [site.project_id])
        identity.create_user(tx, "ada")
        identity.join_project(tx, "ada", "alpha", "member")

    site.store.transaction(prepare)
    end_image(site)
    delete(site)
    # A deleted image stays known to what was made from it, and to nobody else.
    assert left_of(site) == {"images"}
    make_again(site)
    assert left_of(site) == {"images", "quotas"}
    assert site.store.read(lambda tx: images.find(tx, site.project_id, [site.image_id])) == {}


def test_it_stays_while_it_has_instances_or_images(site: Site) -> None:
    site.add_node("a")
    [instance_id] = site.store.transaction(lambda tx: site.launch(tx))
    before = left_of(site)
    with pytest.raises(Conflict, match="has instances"):
        delete(site)
    site.store.transaction(
        lambda tx: instances.terminated(tx, instances.find(tx, [instance_id])[0], None)
    )
    with pytest.raises(Conflict, match="has images"):
        delete(site)
    assert before <= left_of(site) | {"ports"}
    end_image(site)
    delete(site)


def test_its_id_is_not_given_again_while_terminated_instances_are_listed(site: Site) -> None:
    site.add_node("a")
    [instance_id] = site.store.transaction(lambda tx: site.launch(tx))
    site.store.transaction(
        lambda tx: instances.terminated(tx, instances.find(tx, [instance_id])[0], None)
    )
    end_image(site)
    delete(site)
    with pytest.raises(Conflict, match="has left terminated instances"):
        make_again(site)

    def age(tx: Transaction) -> None:
        tx.execute(update(instance_rows).values(terminated_at=tx.now - 3601))

    site.store.transaction(age)
    forget = partial(history.forget, history_s=1e9, audit_s=1e9, terminated_s=3600.0)
    site.store.transaction(forget)
    make_again(site)


def test_no_table_is_overlooked(site: Site) -> None:
    """A row of any table that bears the id of a project keeps a new one from having that id."""
    number = "111111111111"
    free = {"audit", "image_shares"}
    for table in metadata.sorted_tables:
        if "project_id" not in table.c or table.name in free:
            continue

        def plant(tx: Transaction, table: Table = table) -> None:
            values = {
                column.name: number if column.name == "project_id" else column.type.python_type()
                for column in table.c
                if not column.nullable
            }
            if tx.is_sqlite:
                tx.execute(text("PRAGMA defer_foreign_keys = ON"))
            else:
                for one in table.foreign_key_constraints:
                    tx.execute(DropConstraint(one))
            tx.execute(insert(table).values(**values))
            with pytest.raises(Conflict):
                identity.create_project(tx, "gamma", QUOTA, number)
            raise _Undo

        with pytest.raises(_Undo):
            site.store.transaction(plant)
    assert audit.name in free


class _Undo(Exception):
    """Takes back what a transaction did."""
