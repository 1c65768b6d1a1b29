"""Addresses under concurrency: each is one port's, and what is freed is given again in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.errors import Conflict, InputError, NotFound
from appliance.messages import GetPolicy
from appliance.store import Transaction, confirmations, networks, policy
from tests.store.conftest import Site, make_site


@pytest.fixture
def small(store_url: str) -> Iterator[Site]:
    """A store with a range of eleven addresses."""
    made = make_site(store_url, cidr="10.64.0.0/28")
    yield made
    made.store.close()


def take(site: Site, port_id: str, quarantine_s: float = 600.0) -> tuple[str, ...]:
    return site.store.transaction(
        lambda tx: networks.allocate(tx, site.network_id, port_id, quarantine_s=quarantine_s)
    )


def free(site: Site, port_id: str, revision: int) -> None:
    site.store.transaction(lambda tx: networks.free(tx, [port_id], {site.network_id: revision}))


def test_three_hundred_ask_for_two_hundred_and_fifty_one(site: Site) -> None:
    start = threading.Barrier(12)

    def ask(worker: int) -> list[tuple[str, ...] | None]:
        start.wait()
        got: list[tuple[str, ...] | None] = []
        for number in range(worker, 300, 12):
            try:
                got.append(take(site, f"eni-{number}"))
            except Conflict:
                got.append(None)
        return got

    with ThreadPoolExecutor(12) as pool:
        answers = [one for part in pool.map(ask, range(12)) for one in part]
    given = [one for one in answers if one]
    assert len(given) == len(set(given)) == 251
    assert answers.count(None) == 49
    reserved = {"10.64.0.0", "10.64.0.1", "10.64.0.2", "10.64.0.3", "10.64.0.255"}
    assert not reserved & {address for one in given for address in one}


def test_the_same_port_gets_the_same_address(site: Site) -> None:
    assert take(site, "eni-1") == take(site, "eni-1") == ("10.64.0.4",)
    assert take(site, "eni-2") == ("10.64.0.5",)


def test_a_freed_address_waits_for_its_quarantine(small: Site) -> None:
    for number in range(11):
        take(small, f"eni-{number}")
    free(small, "eni-3", revision=9)
    with pytest.raises(Conflict) as caught:
        take(small, "eni-x")
    assert caught.value.exact_code == "InsufficientFreeAddressesInSubnet"
    assert take(small, "eni-x", quarantine_s=-1.0) == ("10.64.0.7",)


def test_a_freed_address_is_given_when_every_node_has_confirmed(small: Site) -> None:
    for number in range(11):
        take(small, f"eni-{number}")

    def change(tx: Transaction) -> int:
        return policy.changed(tx, small.vpc_id, [policy.Change(kind="port", subject="eni-3")])[
            small.network_id
        ]

    def confirm(node_id: str, revision: int) -> None:
        question = GetPolicy(node_id=node_id, network_id=small.network_id, known_revision=revision)
        small.store.transaction(lambda tx: confirmations.confirm(tx, question))

    confirm("n1", 0)
    confirm("n2", 0)
    revision = small.store.transaction(change)
    free(small, "eni-3", revision)
    confirm("n1", revision)
    with pytest.raises(Conflict):
        take(small, "eni-x")
    confirm("n2", revision)
    assert take(small, "eni-x") == ("10.64.0.7",)


def test_ranges_that_are_none(site: Site) -> None:
    for wrong in ("10.0.0.0/33", "10.0.0.1/24", "nonsense", "10.0.0.0/32"):
        with pytest.raises(InputError):
            networks.gateway_of(wrong)
    with pytest.raises(NotFound):
        site.store.read(lambda tx: networks.with_revision(tx, "subnet-none"))
