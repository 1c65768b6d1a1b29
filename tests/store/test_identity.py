"""Projects, users, memberships and keys, and when a key is good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance import seal
from appliance.errors import Conflict, InputError, NotFound
from appliance.seal import Seal
from appliance.store import Store, Transaction, identity, migrations
from appliance.store.identity import StoreCredentials
from appliance.store.schema import access_keys, quotas
from appliance.world import World

QUOTA = {"instances": 3, "vcpus": 4}


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url, World())
    migrations.upgrade(made)
    yield made
    made.close()


@pytest.fixture
def keys(tmp_path: Path) -> Seal:
    return seal.load(tmp_path / "seal.json")


@pytest.fixture
def pair(store: Store, keys: Seal) -> tuple[str, str]:
    """Return the key of a user who is a member of a project."""

    def make(tx: Transaction) -> tuple[str, str]:
        identity.create_project(tx, "demo", QUOTA)
        identity.create_user(tx, "ada")
        identity.join_project(tx, "ada", "demo", "member")
        return identity.create_access_key(tx, keys, "ada", "demo")

    return store.transaction(make)


def test_a_project_is_an_account_with_quotas(store: Store) -> None:
    made = store.transaction(lambda tx: identity.create_project(tx, "demo", QUOTA))
    assert len(made.project_id) == 12
    assert made.project_id.isdigit()
    assert store.read(identity.list_projects) == [made]
    rows = store.read(lambda tx: tx.execute(quotas.select()).all())
    assert {(row.resource, row.used, row.ceiling) for row in rows} == {
        ("instances", 0, 3),
        ("vcpus", 0, 4),
    }
    found = store.read(lambda tx: identity.find_project(tx, made.project_id))
    assert found == made


def test_names_are_taken_once(store: Store) -> None:
    store.transaction(lambda tx: identity.create_project(tx, "demo", QUOTA, "123456789012"))
    store.transaction(lambda tx: identity.create_user(tx, "ada"))
    with pytest.raises(Conflict):
        store.transaction(lambda tx: identity.create_project(tx, "demo", QUOTA))
    with pytest.raises(Conflict):
        store.transaction(lambda tx: identity.create_project(tx, "other", QUOTA, "123456789012"))
    with pytest.raises(Conflict):
        store.transaction(lambda tx: identity.create_user(tx, "ada"))


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a b", "a\n", "é", "a" * 65, "a;b", "../a", "123456789012", "AIDAJIG2VMLKU5YFW3LG"],
)
def test_bad_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError):
        store.transaction(lambda tx: identity.create_project(tx, name, QUOTA))
    with pytest.raises(InputError):
        store.transaction(lambda tx: identity.create_user(tx, name))


def test_bad_account_numbers_are_refused(store: Store) -> None:
    def make(tx: Transaction, number: str) -> None:
        identity.create_project(tx, "demo", QUOTA, number)

    for number in ("1", "12345678901x", "1234567890123"):
        with pytest.raises(InputError):
            store.transaction(partial(make, number=number))


def test_a_key_is_its_owners_in_the_project(
    store: Store, keys: Seal, pair: tuple[str, str]
) -> None:
    key_id, secret = pair
    assert key_id.startswith("AKIA")
    assert len(key_id) == 20
    assert len(secret) == 40
    found = StoreCredentials(store, keys).find(key_id)
    assert found is not None
    assert found.secret == secret
    assert found.identity.user_name == "ada"
    assert found.identity.access_level == "member"
    [listed] = store.read(identity.list_access_keys)
    assert (listed.user_name, listed.project_name, listed.is_enabled) == ("ada", "demo", True)
    assert StoreCredentials(store, keys).find("AKIAUNKNOWN") is None


def test_the_secret_is_not_in_the_store(
    store: Store, pair: tuple[str, str], tmp_path: Path
) -> None:
    rows = store.read(lambda tx: tx.execute(access_keys.select()).all())
    assert pair[1].encode() not in rows[0].secret_sealed
    store.close()
    for path in tmp_path.glob("store.sqlite*"):
        assert pair[1].encode() not in path.read_bytes()


def _disable_key(tx: Transaction, key_id: str) -> None:
    identity.enable_access_key(tx, key_id, is_enabled=False)


DEATHS: dict[str, Callable[[Any, str], None]] = {
    "key disabled": _disable_key,
    "key deleted": identity.delete_access_key,
    "user disabled": lambda tx, _: identity.enable_user(tx, "ada", is_enabled=False),
    "user deleted": lambda tx, _: identity.delete_user(tx, "ada"),
    "project disabled": lambda tx, _: identity.enable_project(tx, "demo", is_enabled=False),
    "project deleted": lambda tx, _: identity.delete_project(tx, "demo"),
    "left": lambda tx, _: identity.leave_project(tx, "ada", "demo"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_key_is_not_found(
    store: Store, keys: Seal, pair: tuple[str, str], death: str
) -> None:
    credentials = StoreCredentials(store, keys)
    assert credentials.find(pair[0]) is not None
    store.transaction(lambda tx: DEATHS[death](tx, pair[0]))
    assert credentials.find(pair[0]) is None


def test_a_level_can_be_changed(store: Store, keys: Seal, pair: tuple[str, str]) -> None:
    store.transaction(lambda tx: identity.join_project(tx, "ada", "demo", "reader"))
    found = StoreCredentials(store, keys).find(pair[0])
    assert found is not None
    assert found.identity.access_level == "reader"
    [user] = store.read(identity.list_users)
    assert user.memberships == {"demo": "reader"}
    with pytest.raises(InputError):
        store.transaction(lambda tx: identity.join_project(tx, "ada", "demo", "owner"))


def test_only_members_get_keys(store: Store, keys: Seal, pair: tuple[str, str]) -> None:
    store.transaction(lambda tx: identity.create_user(tx, "bob"))
    with pytest.raises(Conflict):
        store.transaction(lambda tx: identity.create_access_key(tx, keys, "bob", "demo"))


def test_what_is_not_there_is_named(store: Store, keys: Seal) -> None:
    missing: tuple[Callable[[Transaction], object], ...] = (
        lambda tx: identity.find_project(tx, "x"),
        lambda tx: identity.find_user(tx, "x"),
        lambda tx: identity.enable_project(tx, "x", is_enabled=True),
        lambda tx: identity.enable_user(tx, "x", is_enabled=True),
        lambda tx: identity.enable_access_key(tx, "x", is_enabled=True),
        lambda tx: identity.delete_access_key(tx, "x"),
        lambda tx: identity.create_access_key(tx, keys, "x", "x"),
    )
    for each in missing:
        with pytest.raises(NotFound, match="'x'"):
            store.transaction(each)
