"""What transactions cost on SQLite and on PostgreSQL, both with their files on disk."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import select, update

from appliance.store import Transaction
from appliance.store.schema import nodes
from tests.bench.figure import Figures, cpu_of, ms
from tests.services.postgresql import PostgreSQL, running
from tests.store.conftest import Site, make_site

_ROUNDS = 5
_SAFE = {"fsync": "on", "full_page_writes": "on"}


def measure(is_quick: bool) -> Figures:
    """Measure a read, a write, and the transaction of a launch, on each kind of store."""
    count = 10 if is_quick else 200
    figures: Figures = {}
    with _on_sqlite() as site:
        figures |= _on(site, "SQLite", count, lambda: 0.0)
    with running(_SAFE, on_disk=True) as server, _on_postgresql(server) as site:
        figures |= _on(site, "PostgreSQL", count, lambda: sum(map(cpu_of, server.pids)))
    return figures


@contextmanager
def _on_sqlite() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="anynode-bench-") as folder:
        site = make_site(f"sqlite:///{folder}/store.sqlite")
        yield site
        site.store.close()


@contextmanager
def _on_postgresql(server: PostgreSQL) -> Iterator[Site]:
    with server.database() as url:
        site = make_site(url)
        yield site
        site.store.close()


def _on(site: Site, kind: str, count: int, server_cpu_s: Callable[[], float]) -> Figures:
    node_id = site.add_node("a")
    accept = update(nodes).where(nodes.c.id == node_id).values(accepts_instances=True)

    def write(tx: Transaction) -> object:
        return tx.execute(accept)

    def read(tx: Transaction) -> object:
        return tx.execute(select(nodes)).all()

    def launch(tx: Transaction) -> object:
        return site.launch(tx)

    works: dict[str, Callable[[], object]] = {
        "a read": lambda: site.store.read(read),
        "a write": lambda: site.store.transaction(write),
        "a launch's transaction": lambda: site.store.transaction(launch),
    }
    figures: Figures = {}
    for what, call in works.items():
        call()
        spent, clock, served = [], [], []
        for _ in range(_ROUNDS):
            cpu, server_cpu = time.thread_time(), server_cpu_s()
            for _ in range(count):
                began = time.monotonic()
                call()
                clock.append(time.monotonic() - began)
            spent.append((time.thread_time() - cpu) / count)
            served.append((server_cpu_s() - server_cpu) / count)
        figures[f"{kind}, {what}: CPU"] = ms(min(spent))
        figures[f"{kind}, {what}: on the clock"] = ms(statistics.median(clock))
        if any(served):
            figures[f"{kind}, {what}: CPU of the server"] = ms(min(served))
    return figures
