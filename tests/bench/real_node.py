"""A real node in a rig of its own: how it starts, what it is when idle, and its launches."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import time
from pathlib import Path
from xml.etree import ElementTree

from tests.bench.figure import Figure, Figures, cpu_of, ms
from tests.node.cloud import Cloud, Instance
from tests.node.conftest import import_demo
from tests.node.place import API_PORT, Place
from tests.rig import Rig, wait_for

_ROUNDS = 5
_STARTS = 3
_IDLE_S = 60
_SETTLE_S = 10
_LEAST_MS = 150
_SHARE = 0.15


def measure(is_quick: bool) -> Figures:
    """Measure starts on an existing store, a minute of idleness, and launches beside the floor."""
    with Rig("bench") as rig:
        place = Place(rig)
        try:
            place.start()
            cloud = _cloud(place)
            return {
                **_starts(place, 1 if is_quick else _STARTS),
                **_idle(place, 1 if is_quick else _IDLE_S),
                **_launches(cloud, 1 if is_quick else _ROUNDS),
            }
        finally:
            place.close()


def _cloud(place: Place) -> Cloud:
    place.cli("project", "create", "tests")
    place.cli("user", "create", "tester")
    place.cli("project", "add-user", "tests", "tester")
    cloud = Cloud(place, place.cli_json("key", "create", "tester", "tests"))
    cloud.image_id = import_demo(place, "demo")
    cloud.make_key_pair("tests")
    return cloud


def _starts(place: Place, rounds: int) -> Figures:
    took = []
    for _ in range(rounds):
        place.stop()
        began = time.monotonic()
        place.begin()
        wait_for(lambda: place.inside.fetch("127.0.0.1", API_PORT), 60, "the first answer")
        took.append(time.monotonic() - began)
        place.wait_up()
    return {"node: start to first answer": ms(statistics.median(took), 3000)}


def _idle(place: Place, seconds: float) -> Figures:
    pid = place.pid
    time.sleep(min(seconds, _SETTLE_S))
    before, began = cpu_of(pid), time.monotonic()
    time.sleep(seconds)
    share = (cpu_of(pid) - before) / (time.monotonic() - began)
    return {
        "idle node: CPU of one core": Figure(round(share * 100, 3), "%", 1.0),
        "idle node: resident memory": Figure(resident_mb(pid), "MB", 160.0),
    }


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, 10^6 bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


def _launches(cloud: Cloud, rounds: int) -> Figures:
    """Launch and measure the floor by turns; nothing else runs in the rig meanwhile."""
    asked, ordered, prepared, disks, domains = [], [], [], [], []
    for _ in range(rounds):
        instance = cloud.launch()
        instance.wait_state("running")
        floor = _Floor(instance)
        entries = cloud.place.cli_json("trace", instance.instance_id)
        instance.terminate()
        steps = {entry["name"]: entry for entry in entries}
        running_at = steps["start"]["started_at"] + steps["start"]["duration_ms"] / 1e3
        ordered_at = steps["bind"]["started_at"]
        asked.append(running_at - steps["accept"]["started_at"])
        ordered.append(running_at - ordered_at)
        prepared.append(steps["start"]["started_at"] - ordered_at)
        disk, domain = floor.measure()
        disks.append(disk)
        domains.append(domain)
    floors = [sum(pair) for pair in zip(disks, domains, strict=True)]
    added = [whole - floor for whole, floor in zip(ordered, floors, strict=True)]
    most_ms = max(_SHARE * statistics.median(floors) * 1e3, _LEAST_MS)
    return {
        "launch: POST to running": ms(statistics.median(asked)),
        "launch: order to running": ms(statistics.median(ordered)),
        "launch: order to start": ms(statistics.median(prepared)),
        "launch, floor: qemu-img create": ms(statistics.median(disks)),
        "launch, floor: createXML": ms(statistics.median(domains)),
        "launch: what we add to the floor": ms(statistics.median(added), round(most_ms, 1)),
        "node after launches: resident memory": Figure(resident_mb(cloud.place.pid), "MB", 160.0),
    }


class _Floor:
    """The domain of an instance under another name, with files and a tap of its own."""

    def __init__(self, instance: Instance) -> None:
        self._rig = instance.place.rig
        own = instance.place.state_dir / "instances" / instance.instance_id
        self._directory = self._rig.directory / "floor"
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.copytree(own, self._directory)
        self._directory.chmod(0o711)
        for path in own.iterdir():
            os.chown(self._directory / path.name, path.stat().st_uid, path.stat().st_gid)
        self._disk = self._directory / "disk-0.qcow2"
        xml = self._rig.run(
            ["virsh", "dumpxml", "--inactive", f"anynode-{instance.instance_id}"]
        ).replace(str(own), str(self._directory))
        domain = ElementTree.fromstring(xml)
        for tag in ("uuid", "metadata"):
            domain.remove(domain.find(tag))  # type: ignore[arg-type]
        domain.find("name").text = "bench-floor"  # type: ignore[union-attr]
        target = domain.find("devices/interface/target")
        assert target is not None
        self._tap = target.attrib["dev"] = "benchtap"
        self._xml = self._directory / "domain.xml"
        self._xml.write_text(ElementTree.tostring(domain, encoding="unicode"))
        base = domain.findtext("devices/disk/backingStore/source")
        self._base = base or self._backing(own / "disk-0.qcow2")

    def _backing(self, disk: Path) -> str:
        said = self._rig.run(["qemu-img", "info", "-U", "--output", "json", str(disk)])
        return str(json.loads(said)["backing-filename"])

    def measure(self) -> tuple[float, float]:
        """Return the seconds of ``qemu-img create`` and of ``createXML``."""
        words = (self._xml, self._base, self._disk, self._tap)
        said = json.loads(self._rig.python("-m", "tests.bench.floor", *words))
        return said["disk"], said["domain"]
