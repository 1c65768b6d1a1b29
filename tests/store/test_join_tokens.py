"""Tokens to join, on each kind of store; and who is a member."""

from __future__ import annotations

import pytest

from appliance.cluster import tokens
from appliance.cluster.tokens import Token
from appliance.errors import Conflict, Denied, InputError, NotFound
from appliance.store import Transaction, join_tokens, members, nodes
from appliance.store.nodes import Node
from tests.store.conftest import Site


def add_token(site: Site, *, valid_s: float = 60.0, node_name: str = "") -> Token:
    made = tokens.make("n1:1", "ab" * 32)
    site.store.transaction(
        lambda tx: join_tokens.create(
            tx, made, created_by="test", valid_s=valid_s, node_name=node_name
        )
    )
    return made


def use(site: Site, token: Token, node_id: str = "n", name: str = "n") -> bool:
    return site.store.transaction(
        lambda tx: join_tokens.use(
            tx, token.token_id, token.secret, node_id=node_id, node_name=name
        )
    )


def state(site: Site, token: Token) -> str:
    found = site.store.read(join_tokens.list_all)
    return next(one.state for one in found if one.token_id == token.token_id)


def test_one_use_and_the_same_node_again(site: Site) -> None:
    token = add_token(site)
    assert state(site, token) == "open"
    assert use(site, token)
    assert not use(site, token)
    with pytest.raises(Denied, match="used before"):
        use(site, token, "other")
    assert state(site, token) == "used"


def test_given_back_it_is_as_good_as_new(site: Site) -> None:
    token = add_token(site)
    use(site, token)
    site.store.transaction(lambda tx: join_tokens.give_back(tx, token.token_id, "other"))
    assert state(site, token) == "used"
    site.store.transaction(lambda tx: join_tokens.give_back(tx, token.token_id, "n"))
    assert use(site, token, "other")


def test_a_transaction_that_fails_uses_nothing(site: Site) -> None:
    token = add_token(site)

    def fail(tx: Transaction) -> None:
        join_tokens.use(tx, token.token_id, token.secret, node_id="n", node_name="n")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        site.store.transaction(fail)
    assert state(site, token) == "open"


def test_revoked_and_unknown(site: Site) -> None:
    token = add_token(site)
    for _ in range(2):
        site.store.transaction(lambda tx: join_tokens.revoke(tx, token.token_id))
    assert state(site, token) == "revoked"
    with pytest.raises(Denied, match="revoked"):
        use(site, token)
    with pytest.raises(NotFound):
        site.store.transaction(lambda tx: join_tokens.revoke(tx, "none"))


def test_for_a_name(site: Site) -> None:
    token = add_token(site, node_name="right")
    with pytest.raises(Denied, match="called right, not n"):
        use(site, token)
    assert use(site, token, name="right")


@pytest.mark.parametrize("valid_s", [0.0, -1.0, tokens.LONGEST_S + 1])
def test_for_no_time_or_for_ever(site: Site, valid_s: float) -> None:
    with pytest.raises(InputError):
        add_token(site, valid_s=valid_s)


def test_only_a_hash_is_stored(site: Site) -> None:
    from sqlalchemy import select

    from appliance.store.schema import join_tokens as table

    token = add_token(site)
    row = site.store.read(lambda tx: tx.execute(select(table)).first())
    assert row is not None
    assert token.secret not in str(tuple(row))
    assert row.secret_sha256 == tokens.hash_of(token.secret)


def enrol(site: Site, node_id: str, name: str, address: str) -> None:
    node = Node(node_id=node_id, name=name, zone="z", roles=("compute",))
    site.store.transaction(
        lambda tx: members.enrol(tx, node, certificate="", address=address, approved=(4, 0, 10))
    )


def test_what_was_not_said_is_not_limited(site: Site) -> None:
    enrol(site, "n1", "a", "h:1")
    found = {one.name: one.approved for one in site.store.read(nodes.status)}
    assert found["a"] == (4, None, 10)


@pytest.mark.parametrize(("name", "address"), [("a", "h:2"), ("b", "h:1")])
def test_names_and_addresses_are_taken_once(site: Site, name: str, address: str) -> None:
    enrol(site, "n1", "a", "h:1")
    with pytest.raises(Conflict):
        enrol(site, "n2", name, address)
    assert [one.name for one in site.store.read(nodes.status)] == ["a"]
    site.store.transaction(lambda tx: members.expel(tx, "n1"))
    enrol(site, "n2", name, address)


def test_who_withdraws_leaves_nothing(site: Site) -> None:
    enrol(site, "n1", "a", "h:1")
    site.store.transaction(lambda tx: members.withdraw(tx, "n1"))
    assert site.store.read(nodes.status) == []
    assert not site.store.read(lambda tx: members.is_known(tx, "n1"))
