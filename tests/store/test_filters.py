"""Filters on both kinds of patterns: what SQL says is what EC2's own rules say."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, literal, select

from appliance.api.ec2.matching import matches as matches_in_memory
from appliance.errors import InputError
from appliance.store import Store, Transaction, filters, migrations
from appliance.store.filters import Filter
from appliance.store.schema import cluster
from appliance.world import World

ALPHABET = "aA*?\\[]%_^-.é'\n"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url, World())
    migrations.upgrade(made)
    yield made
    made.close()


def fits(pattern: str, text: str) -> bool:
    """Say by EC2's rules whether a text fits: written anew, so that two must agree."""
    expression = ""
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\" and position + 1 < len(pattern):
            position += 1
            expression += re.escape(pattern[position])
        else:
            expression += {"*": "[\\s\\S]*", "?": "[\\s\\S]"}.get(char, re.escape(char))
        position += 1
    return re.fullmatch(expression, text) is not None


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pattern=st.text(ALPHABET, max_size=8), text=st.text(ALPHABET, max_size=8))
def test_the_store_memory_and_the_rule_agree(store: Store, pattern: str, text: str) -> None:
    def ask(tx: Transaction) -> bool:
        tx.execute(cluster.delete())
        tx.execute(insert(cluster).values(key="k", value=text))
        query = select(cluster.c.key).where(filters.matches(tx, cluster.c.value, [pattern]))
        return tx.execute(query).first() is not None

    expected = fits(pattern, text)
    assert store.transaction(ask) is expected
    assert matches_in_memory([Filter("x", [pattern])], {"x": [text]}) is expected


def test_no_value_fits_nothing(store: Store) -> None:
    def ask(tx: Transaction) -> object:
        tx.execute(cluster.delete())
        tx.execute(insert(cluster).values(key="k", value="v"))
        return tx.execute(select(cluster).where(filters.matches(tx, cluster.c.value, []))).first()

    assert store.transaction(ask) is None


def test_an_unknown_filter_is_named_in_ec2s_words(store: Store) -> None:
    with pytest.raises(InputError, match="The filter 'x' is invalid") as caught:
        store.read(lambda tx: filters.conditions(tx, {}, [Filter("x", ["y"])]))
    assert caught.value.exact_code == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("value", "inside", "outside"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.5, 1767323046.0),
        ("2026-01-02T03:04:05.250Z", 1767323045.25, 1767323045.26),
        ("2026-01-02T03:04*", 1767323099.0, 1767323100.0),
        ("2026-01-02T*", 1767312000.0, 1767398400.0),
        ("2026-01-*", 1767312000.0, 1767225599.0),
        ("2026*", 1767225600.0, 1767225599.0),
    ],
)
def test_times(value: str, inside: float, outside: float) -> None:
    low, high = filters._span(value) or (0.0, 0.0)
    assert low <= inside < high
    assert not low <= outside < high


@pytest.mark.parametrize("value", ["", "*", "x", "2026-13-01T00:00:00Z", "2026-01-02", "9" * 50])
def test_what_is_no_time_fits_nothing(value: str) -> None:
    assert filters._span(value) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["true"], True),
        (["false"], False),
        (["false", "true"], True),
        (["t*"], True),
        (["*"], True),
        (["yes"], False),
        ([], False),
    ],
)
def test_flags(store: Store, values: list[str], expected: bool) -> None:
    def ask(tx: Transaction) -> bool:
        condition = filters.flag(literal(True))(tx, values)
        return tx.execute(select(literal(1)).where(condition)).first() is not None

    assert store.read(ask) is expected


def test_nonsense_is_neither_true_nor_false(store: Store) -> None:
    def ask(tx: Transaction) -> object:
        condition = filters.flag(literal(False))(tx, ["nonsense"])
        return tx.execute(select(literal(1)).where(condition)).first()

    assert store.read(ask) is None


def test_numbers_go_by_their_digits(store: Store) -> None:
    def ask(*values: str) -> bool:
        condition = filters.number(literal(443))
        query = select(literal(1))
        return (
            store.read(lambda tx: tx.execute(query.where(condition(tx, values))).first())
            is not None
        )

    assert ask("443")
    assert ask("80", "4?3")
    assert not ask("44", "4433", "x", "")
