"""What the node knows of its ports, and who has an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.datapath.ports import Ports
from appliance.datapath.record import PortRecord
from appliance.journal import Journal
from appliance.model import InstanceMetadata
from appliance.testing.network import make_network, make_port
from appliance.world import SystemClock

NETWORK = make_network("fake")


def record(number: int, address: str = "10.64.1.9") -> PortRecord:
    port = replace(make_port(NETWORK, number), addresses=(address,))
    metadata = InstanceMetadata(
        instance_id=port.instance_id,
        project_id="p",
        reservation_id="r",
        launch_index=0,
        image_id="ami-1",
        instance_type="t2.nano",
        zone="z",
        region="r",
        hostname=port.hostname,
    )
    return PortRecord(port=port, metadata=metadata)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "datapath.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def ports(journal: Journal) -> Ports:
    return Ports(journal, SystemClock())


def at(ports: Ports, address: str = "10.64.1.9") -> PortRecord | None:
    return ports.at(NETWORK.network_id, address)


def test_a_port_is_found_by_its_address_until_it_is_detached(
    ports: Ports, journal: Journal
) -> None:
    one = replace(record(1), is_guarded=True)
    ports.put(one)
    assert at(ports) == at(Ports(journal, SystemClock())) == one
    ports.note(one.port.port_id, is_attached=False)
    assert at(ports) is at(Ports(journal, SystemClock())) is None
    assert ports.get(one.port.port_id) == replace(one, is_attached=False)
    ports.note(one.port.port_id, is_guarded=False)
    assert ports.all() == Ports(journal, SystemClock()).all() == []


def test_nobody_has_an_address_that_two_ports_claim(ports: Ports, journal: Journal) -> None:
    one, two = record(1), record(2)
    ports.put(one)
    ports.put(two)
    assert at(ports) is at(Ports(journal, SystemClock())) is None
    assert ports.rivals(two.port.port_id, NETWORK.network_id, "10.64.1.9") == [one]
    ports.note(one.port.port_id, is_attached=False)
    assert at(ports) == two
    assert ports.rivals(two.port.port_id, NETWORK.network_id, "10.64.1.9") == []


def test_a_port_with_another_address_has_only_that(ports: Ports) -> None:
    ports.put(record(1))
    ports.put(record(1, "10.64.1.10"))
    assert at(ports) is None
    assert at(ports, "10.64.1.10") == record(1, "10.64.1.10")


def test_an_unknown_port_has_no_age_and_no_notes(ports: Ports) -> None:
    ports.note("eni-1", is_guarded=True)
    assert ports.all() == []
    assert ports.age_s("eni-1") == 0.0


def test_age_counts_from_the_last_attach(journal: Journal) -> None:
    clock = Standing()
    ports = Ports(journal, clock)
    one = record(1)
    ports.put(one)
    clock.seconds += 5
    ports.note(one.port.port_id, is_guarded=True)
    assert ports.age_s(one.port.port_id) == 5
    ports.put(one)
    assert ports.age_s(one.port.port_id) == 0


class Standing(SystemClock):
    """A clock that goes on when it is told to."""

    seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds
