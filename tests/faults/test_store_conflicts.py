"""PostgreSQL refuses a statement or a COMMIT of a launch: what comes of the launch is the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from appliance.store import on_postgresql, schema
from tests.chain.conftest import quiet_deaths  # noqa: F401
from tests.chain.harness import Chain, Machine, quicken, wait_until
from tests.services.postgresql import PostgreSQL

REFUSE = "DO $$ BEGIN RAISE EXCEPTION 'told to' USING ERRCODE = '{code}'; END $$"
SERIALIZATION_FAILURE, DEADLOCK, SHUTDOWN = "40001", "40P01", "57P01"
STATEMENTS = 150
"""More than a launch and its end have, with what the node does beside them."""

COMMITS = 24
EVERY = 12
"""Of so many points one is tried in ``make test``."""


class Refusals:
    """Lets the n-th statement or COMMIT from now on be refused by the server, once."""

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._code = ""
        event.listen(engine, "before_cursor_execute", self._on_statement, retval=True)
        commit = engine.dialect.do_commit
        engine.dialect.do_commit = lambda connection: self._on_commit(connection, commit)  # type: ignore[assignment]

    def arm(self, what: str, nth: int, code: str = SERIALIZATION_FAILURE) -> None:
        """Choose what is refused; a number that is never reached refuses nothing."""
        with self._lock:
            self._left, self._code = {what: nth}, code
            self.counts.clear()

    @property
    def was_refused(self) -> bool:
        return any(left <= 0 for left in self._left.values())

    def _is_due(self, what: str) -> bool:
        with self._lock:
            self.counts[what] += 1
            self._left[what] = self._left.get(what, 0) - 1
            return self._left[what] == 0

    def _on_statement(
        self, _connection: Any, _cursor: Any, statement: str, parameters: Any, _c: Any, _m: bool
    ) -> tuple[str, Any]:
        if self._is_due("statement"):
            return REFUSE.format(code=self._code), {} if isinstance(
                parameters, dict
            ) else parameters
        return statement, parameters

    def _on_commit(self, connection: Any, commit: Callable[[Any], None]) -> None:
        driver = connection.driver_connection
        assert isinstance(driver, on_postgresql.PatientConnection)
        if not driver.is_reading and self._is_due("commit"):
            try:
                driver.execute(REFUSE.format(code=self._code).encode())
            finally:
                if not driver.closed:
                    driver.rollback()
        commit(connection)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL) -> Iterator[Chain]:
    """A node on PostgreSQL that all cases share: they leave it as they found it."""
    with pytest.MonkeyPatch.context() as monkeypatch, postgresql.database() as url:
        quicken(monkeypatch)
        machine = Machine()
        machine.install(monkeypatch)
        path: Path = tmp_path_factory.mktemp("conflicts")
        made = Chain(path, machine, store={"url": url})
        yield made
        made.assert_clean()
        made.stop()


@pytest.fixture(scope="module")
def refusals(chain: Chain) -> Refusals:
    return Refusals(chain.node.store.engine)


def live_once(chain: Chain) -> list[tuple[str, int]]:
    """Launch an instance and end it; return the outcomes of its placements."""
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    assert chain.machine.running() == {instance_id: 1}
    assert len(chain.addresses(instance_id)) == 1
    assert chain.quota_used() == {"instances": 1, "vcpus": 1, "memory_mib": 512}
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    assert chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}
    table = schema.placements
    query = select(table.c.phase, table.c.epoch).where(table.c.instance_id == instance_id)
    found = chain.read(lambda tx: [tuple(row) for row in tx.execute(query)])
    letters = chain.read(lambda tx: tx.execute(select(schema.outbox.c.dead_at)).scalars().all())
    assert not any(letters), "a message was given up"
    return list(found)


def points(what: str, count: int) -> list[Any]:
    group = f"store: conflict at a {what}"
    return [
        pytest.param(nth, marks=pytest.mark.faults(group, quick=nth % EVERY == 1))
        for nth in range(1, count + 1)
    ]


@pytest.mark.parametrize("nth", points("statement", STATEMENTS))
def test_a_statement_is_refused(chain: Chain, refusals: Refusals, nth: int) -> None:
    refusals.arm("statement", nth)
    assert live_once(chain) == [("gone", 1)]
    wait_until(lambda: refusals.was_refused, "one was refused, if only of a sweep")


@pytest.mark.parametrize("nth", points("COMMIT", COMMITS))
def test_a_commit_is_refused(chain: Chain, refusals: Refusals, nth: int) -> None:
    refusals.arm("commit", nth)
    assert live_once(chain) == [("gone", 1)]
    wait_until(lambda: refusals.was_refused, "one was refused, if only of a sweep")


@pytest.mark.faults("store: conflict at a COMMIT", quick=True)
@pytest.mark.parametrize("code", [DEADLOCK, "55P03", SHUTDOWN])
def test_other_refusals_are_tried_again(chain: Chain, refusals: Refusals, code: str) -> None:
    for what in ("statement", "commit"):
        refusals.arm(what, 5, code)
        assert live_once(chain) == [("gone", 1)]


@pytest.mark.faults("store: conflict at a COMMIT", quick=True)
def test_commits_are_refused_by_the_server_itself(
    chain: Chain, refusals: Refusals, postgresql: PostgreSQL
) -> None:
    """Every third COMMIT fails as it ends, as it does where two transactions cannot be ordered."""
    refusals.arm("nothing", 0)
    database = str(chain.node.store.engine.url.database)
    postgresql.execute("CREATE SEQUENCE tries", database)
    postgresql.execute("GRANT ALL ON tries TO anynode", database)
    postgresql.execute(
        """
        CREATE FUNCTION sometimes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') % 3 = 0 THEN
                RAISE EXCEPTION 'told to' USING ERRCODE = '40001';
            END IF;
            RETURN NULL;
        END $$
        """,
        database,
    )
    postgresql.execute(
        "CREATE CONSTRAINT TRIGGER sometimes AFTER INSERT ON commits DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION sometimes()",
        database,
    )
    try:
        assert live_once(chain) == [("gone", 1)]
        [(tries,)] = postgresql.execute("SELECT last_value FROM tries", database)
        assert int(str(tries)) > 9
    finally:
        postgresql.execute("DROP TRIGGER sometimes ON commits", database)


@pytest.mark.faults("store: enumeration", quick=True)
def test_t45_the_matrix_has_every_statement_of_a_life(chain: Chain, refusals: Refusals) -> None:
    """The node does other things beside: the life with the fewest is nearest to the truth."""
    fewest: Counter[str] = Counter(statement=1 << 30, commit=1 << 30)
    for _ in range(3):
        refusals.arm("nothing", 0)
        live_once(chain)
        fewest &= refusals.counts
    assert 20 < fewest["statement"] <= STATEMENTS
    assert 5 < fewest["commit"] <= COMMITS
