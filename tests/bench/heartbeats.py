"""What the heartbeats of many nodes cost the controller, the broker and the database."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from appliance.bus import topology
from appliance.cluster.logins import Logins
from appliance.cluster.management import Access, Management
from appliance.config import ComputeSettings
from appliance.messages import Heartbeat, encode
from appliance.model import NodeCapacity
from appliance.store import nodes
from appliance.store import setup as store_setup
from appliance.store.nodes import Node as NodeRow
from tests.bench.beating import Beating
from tests.bench.fake_cluster import Place, place
from tests.bench.fake_node import wait_until
from tests.bench.figure import Figure, Figures
from tests.cluster.fakes import HYPERVISOR_ROLES

_NODES = 1000
_MEASURED_S = 60.0
_IDLE_S = 20.0
_SETTLE_S = 15.0
_UP_S = 60.0
_AT_ONCE = 100
_CAPACITY = NodeCapacity(vcpus=64, memory_mib=262_144, disk_gib=4_096, hypervisor="fake")


def measure(is_quick: bool) -> Figures:
    """Measure a controller that has nothing else to do, before and while they beat."""
    count = 5 if is_quick else _NODES
    with place() as here:
        here.cluster.add("n1", ("controller",))
        here.cluster.start()
        before = _shares(here, 0.5 if is_quick else _IDLE_S)
        with _beating(here, _admit(here, count)):
            wait_until(lambda: _known_up(here) == count + 1, _UP_S, 0.2)
            time.sleep(0.1 if is_quick else _SETTLE_S)
            after = _shares(here, 0.5 if is_quick else _MEASURED_S)
            assert _known_up(here) == count + 1
    figures = {}
    for who, share in after.items():
        figures[f"{_NODES:,} nodes' heartbeats: CPU of the {who}, of one core"] = share
        figures[f"no nodes: CPU of the {who}, of one core"] = before[who]
    return {name: Figure(round(share * 100, 3), "%") for name, share in figures.items()}


def _shares(here: Place, seconds: float) -> dict[str, float]:
    """Return what each uses of a core, over some time."""
    before, began = here.cpu(), time.monotonic()
    time.sleep(seconds)
    used, elapsed = here.cpu().since(before), time.monotonic() - began
    return {
        "controller": used.control / elapsed,
        "broker": used.broker / elapsed,
        "database": used.database / elapsed,
    }


def _known_up(here: Place) -> int:
    return sum(1 for one in here.cluster.read(nodes.status) if one.is_up)


class _Collecting(Management):
    """Keeps what logins would write at the broker, to write that of many at once."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._kept: dict[str, list[Any]] = {}

    def import_definitions(self, definitions: Mapping[str, Any]) -> None:
        for name, found in definitions.items():
            kept = self._kept.setdefault(name, [])
            kept.extend(one for one in found if one not in kept[-_AT_ONCE:])

    def write(self) -> None:
        """Write it, and forget it."""
        super().import_definitions(self._kept)
        self._kept = {}


def _admit(here: Place, count: int) -> list[Beating]:
    """Make rows, logins and queues as nodes have them; return what they send."""
    vhost = here.cluster.vhost
    collecting = _Collecting(vhost.access)
    logins = Logins(collecting)
    made = []
    for number in range(1, count + 1):
        row = NodeRow(
            node_id=str(uuid.uuid4()), name=f"s{number}", zone="local-1a", roles=HYPERVISOR_ROLES
        )
        here.cluster.change(lambda tx: store_setup.join(tx, row))  # noqa: B023
        password = logins.admit(row.node_id, is_control=False)
        login = topology.login_of(row.node_id, is_control=False)
        made.append(
            Beating(
                url=here.broker.url(vhost.name, login, password),
                login=login,
                key="hint.controller",
                kind=Heartbeat.__name__,
                body=encode(_beat(row.node_id)).decode(),
            )
        )
        if number % _AT_ONCE == 0 or number == count:
            collecting.write()
    return made


def _beat(node_id: str) -> Heartbeat:
    return Heartbeat(
        node_id=node_id,
        boot_id=str(uuid.uuid4()),
        capacity=_CAPACITY,
        offered_vcpus=512,
        offered_memory_mib=261_632,
        offered_disk_gib=4_096,
        release="0.1.0",
        roles=HYPERVISOR_ROLES,
    )


@contextmanager
def _beating(here: Place, made: Sequence[Beating]) -> Iterator[None]:
    """Let them beat as often as real ones do."""
    every_s = ComputeSettings().heartbeat_every_s
    with (here.cluster.folder / "beating.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("/usr/bin/setpriv", "--pdeathsig", "KILL", "--"),
                *(sys.executable, "-m", "tests.bench.beating", str(every_s)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for one in made:
            process.stdin.write(msgspec.json.encode(one) + b"\n")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline(), (here.cluster.folder / "beating.log").read_text()
        yield
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
