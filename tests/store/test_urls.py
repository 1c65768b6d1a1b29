"""URLs of a store on PostgreSQL: as SQLAlchemy writes them, and as PostgreSQL does."""

from __future__ import annotations

import pytest

from appliance.store import Store
from appliance.world import World


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql+psycopg://u:p@db/n", "db", None),
        ("postgresql://u:p@db:5433/n", "db", 5433),
        ("postgres://u:p@db/n?sslmode=require", "db", None),
        ("postgresql://u:p@a,b/n", "a,b", ","),
        ("postgresql+psycopg://u:p@a:1,b:2/n?sslmode=require", "a,b", "1,2"),
        ("postgresql://u:p%2C%40@a:1,b:2/n", "a,b", "1,2"),
        ("postgresql+psycopg://u:p@/n?host=a:1&host=b:2", "a,b", "1,2"),
        ("postgresql://u@/n?host=/run/postgresql", "/run/postgresql", None),
    ],
)
def test_hosts_of_a_url(url: str, hosts: str, ports: object) -> None:
    store = Store(url, World())
    _, parameters = store.engine.dialect.create_connect_args(store.engine.url)
    assert (parameters["host"], parameters.get("port")) == (hosts, ports)
    assert (parameters["user"], parameters["dbname"]) == ("u", "n")
    if "%" in url:
        assert parameters["password"] == "p,@"
