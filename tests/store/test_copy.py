"""A store is copied whole: every value of every table, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    Select,
    Table,
    func,
    insert,
    select,
)
from sqlalchemy import update as update_rows
from sqlalchemy.exc import IntegrityError

from appliance.errors import Conflict, Unavailable
from appliance.store import Store, Transaction, copy, migrations
from appliance.store.schema import cluster, decisions, metadata
from appliance.world import World
from tests.services.postgresql import PostgreSQL

ROWS = 3
MANY = 2100


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    """A store that has rows in every table."""
    made = Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World())
    migrations.upgrade(made)
    made.transaction(fill)
    yield made
    made.close()


@pytest.fixture(params=["with tables", "empty"])
def target(request: pytest.FixtureRequest, postgresql: PostgreSQL) -> Iterator[Store]:
    with postgresql.database(is_empty=request.param == "empty") as url:
        made = Store(url, World())
        yield made
        made.close()


def fill(tx: Transaction) -> None:
    for table in metadata.sorted_tables:
        rows = [
            {column.name: value(column, number) for column in table.columns}
            for number in range(1, ROWS + 1)
        ]
        tx.execute(insert(table), rows)
    tx.execute(insert(cluster), [{"key": f"key {n}", "value": "é\n'\\"} for n in range(MANY)])


def value(column: Column[Any], number: int) -> object:
    """Return something for a column that differs from row to row, in the last row of null."""
    if column.nullable and number == ROWS:
        return None
    for key in column.foreign_keys:
        return value(key.column, number)
    kind = column.type
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, Float):
        return 1_700_000_000.123456789 / number
    if isinstance(kind, Integer):
        return number * 7
    if isinstance(kind, LargeBinary):
        return bytes([0, 255, number]) + f"{column}".encode()
    return f"{number}ä {column}"[: getattr(kind, "length", None) or 1000]


def rows_of(store: Store, query: Select[Any]) -> list[Any]:
    return store.read(lambda tx: list(tx.execute(query)))


def count(store: Store, table: Table) -> int:
    return store.read(
        lambda tx: int(tx.execute(select(func.count()).select_from(table)).scalar_one())
    )


def test_every_value_is_copied(source: Store, target: Store) -> None:
    seen: dict[str, tuple[int, int]] = {}
    copied = copy.copy(source, target, lambda table, done, rows: seen.update({table: (done, rows)}))
    assert set(copied) == set(seen) == set(metadata.tables) - {"commits", "compatibility"}
    assert seen["cluster"] == (MANY + ROWS, MANY + ROWS)
    assert copied["instances"].rows == ROWS
    for table in map(metadata.tables.__getitem__, copied):
        query = select(table).order_by(*table.primary_key.columns)
        if table.name == "cluster":
            query = select(table).where(table.c.value != "é\n'\\").order_by(table.c.key)
        assert rows_of(target, query) == rows_of(source, query), table.name


def test_what_counts_up_goes_on(source: Store, target: Store) -> None:
    copy.copy(source, target)

    def decide(tx: Transaction) -> int:
        made = insert(decisions).values(instance_id="i", epoch=1, body=b"{}", made_at=1.0)
        return int(tx.execute(made.returning(decisions.c.id)).scalar_one())

    assert target.transaction(decide) == ROWS * 7 + 1


def test_a_copy_may_be_repeated(source: Store, target: Store) -> None:
    first = copy.copy(source, target)
    assert copy.copy(source, target) == first
    assert count(target, cluster) == MANY + ROWS


def test_a_store_with_something_else_is_refused(source: Store, target: Store) -> None:
    migrations.upgrade(target)
    target.transaction(lambda tx: tx.execute(insert(cluster).values(key="mine", value="v")))
    with pytest.raises(Conflict, match="not empty: cluster have rows"):
        copy.copy(source, target)
    assert count(target, cluster) == 1


def test_an_interruption_leaves_nothing(source: Store, target: Store) -> None:
    def interrupt(table: str, done: int, rows: int) -> None:
        if table == "timeline":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy.copy(source, target, interrupt)
    assert [name for name, table in metadata.tables.items() if count(target, table)] == [
        "compatibility"
    ]
    copy.copy(source, target)
    assert count(target, cluster) == MANY + ROWS


@pytest.mark.parametrize(
    "harm",
    [
        lambda tx: tx.execute(cluster.delete().where(cluster.c.key == "key 7")),
        lambda tx: tx.execute(
            update_rows(cluster).where(cluster.c.key == "key 7").values(value="other")
        ),
    ],
    ids=["a row is missing", "a value differs"],
)
def test_a_copy_that_differs_is_given_up(
    source: Store,
    target: Store,
    harm: Callable[[Transaction], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy_badly(reading: Transaction, tx: Transaction, *rest: Any) -> None:
        copy_table(reading, tx, *rest)
        if rest[0] is cluster:
            harm(tx)

    copy_table = copy._copy_table
    monkeypatch.setattr(copy, "_copy_table", copy_badly)
    with pytest.raises(Unavailable, match="not like the original: cluster"):
        copy.copy(source, target)
    assert count(target, cluster) == 0


def test_a_value_that_the_target_cannot_hold_is_named(source: Store, target: Store) -> None:
    source.transaction(lambda tx: tx.execute(insert(cluster).values(key="nul", value="a\0b")))
    with pytest.raises(Conflict, match="does not take a value of cluster") as caught:
        copy.copy(source, target)
    assert not isinstance(caught.value.__cause__, IntegrityError)
    assert count(target, cluster) == 0
