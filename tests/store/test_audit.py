"""The audit log: appended to, looked through, forgotten by age, and never altered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from appliance.store import Store, Transaction, audit, history
from appliance.store.audit import Deed
from appliance.store.schema import audit as audit_rows
from tests.store.conftest import Site

DAY_S = 86400.0
DEED = Deed(
    actor="ada",
    user_id="AIDA1",
    access_key_id="AKIA1",
    project_id="123456789012",
    action="StopInstances",
    subject="i-1",
    request_id="req-1",
    source="10.0.0.1",
)


@pytest.fixture
def store(site: Site) -> Store:
    return site.store


def write(store: Store, *deeds: Deed) -> None:
    for deed in deeds:
        store.transaction(lambda tx, deed=deed: audit.record(tx, deed))  # type: ignore[misc]


def test_no_row_can_be_altered(store: Store) -> None:
    write(store, DEED)
    with pytest.raises(DBAPIError, match="append-only"):
        store.transaction(lambda tx: tx.execute(update(audit_rows).values(actor="nobody")))
    [entry] = store.read(lambda tx: audit.find(tx, limit=10))
    assert {name: getattr(entry, name) for name in vars(DEED)} == vars(DEED)


def test_no_code_alters_or_picks_rows() -> None:
    """Deleting is for ``history`` alone, and goes by age; see its test."""
    import inspect

    from appliance.store import audit as module

    source = inspect.getsource(module)
    assert "update(" not in source
    assert "delete(" not in source


def test_it_is_looked_through(store: Store) -> None:
    refused = replace(DEED, actor="bob", user_id="AIDA2", result="AuthFailure")
    command = replace(DEED, actor="operator root", project_id="", action="CreateUser")
    write(store, DEED, refused, command, DEED)

    def numbers(**wanted: object) -> list[int]:
        found = store.read(lambda tx: audit.find(tx, **{"limit": 10, **wanted}))  # type: ignore[arg-type]
        return [one.number for one in found]

    first, *rest = numbers()
    everything = [first, *rest]
    assert everything == sorted(everything)
    assert numbers(limit=2) == everything[2:]
    assert numbers(after=first) == rest
    assert numbers(actors=["bob"]) == numbers(actors=["AIDA2"]) == everything[1:2]
    assert numbers(actors=["root", "operator root"]) == everything[2:3]
    assert numbers(project_id="123456789012") == [everything[0], everything[1], everything[3]]
    assert numbers(action="CreateUser") == everything[2:3]
    assert numbers(refused_only=True) == everything[1:2]
    assert numbers(since=4e9) == []


def test_one_deed_is_one_line(store: Store) -> None:
    write(store, replace(DEED, subject="a\nb\x1b[31m\u2028c" + "x" * 5000))
    [entry] = store.read(lambda tx: audit.find(tx, limit=1))
    assert entry.subject.startswith("a?b?[31m?cxxx")
    assert len(entry.subject) == 2000


def test_it_is_forgotten_by_age_in_batches(store: Store) -> None:
    def prepare(tx: Transaction) -> None:
        ages = [91.0] * (history.BATCH + 1) + [89.0, 31.0, 0.0]
        tx.execute(delete(audit_rows))
        tx.execute(insert(audit_rows), [{**vars(DEED), "at": tx.now - age * DAY_S} for age in ages])

    def forget() -> bool:
        return store.transaction(
            lambda tx: history.forget(
                tx, history_s=30 * DAY_S, audit_s=90 * DAY_S, terminated_s=3600.0
            )
        )

    def left() -> int:
        return len(store.read(lambda tx: tx.execute(select(audit_rows.c.id)).all()))

    store.transaction(prepare)
    assert forget()
    assert left() == 4
    assert not forget()
    assert left() == 3
