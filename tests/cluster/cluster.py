"""Some machines on one: rigs on a switch, each with a libvirtd of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tests.cluster.machine import Machine
from tests.node.conftest import DEMO_IMAGE
from tests.rig import Rig

RANGES = ipaddress.IPv4Network("198.18.0.0/15")
"""What the switch takes a range of: RFC 2544 sets it aside for tests of network devices."""

HOST_LINK = "an-cluster"
OFFERED_MIB = 2048


def ignore(text: str) -> None:
    """Say nothing."""


class Cluster:
    """Machines that see each other on a switch; they are no cluster before :meth:`form`.

    :param say: told what is done, for people who wait.
    :param settings: more settings of all machines, as TOML.
    """

    def __init__(
        self,
        names: Sequence[str] = ("n1", "n2", "n3"),
        say: Callable[[str], None] = ignore,
        settings: str = "",
    ) -> None:
        self._names = names
        self._say = say
        self._settings = _SETTINGS.format(ratio=_ratio()) + settings
        self._stack = contextlib.ExitStack()
        self.machines: list[Machine] = []
        self.range = _free_range()
        self.switch: Rig

    def __enter__(self) -> Cluster:
        try:
            self.switch = self._stack.enter_context(Rig("switch"))
            for number, name in enumerate(self._names, start=1):
                rig = self._stack.enter_context(Rig(name))
                address = str(self.range[number])
                rig.join(self.switch, f"{address}/{self.range.prefixlen}")
                machine = Machine(rig, address, settings=self._settings)
                self._stack.callback(machine.close)
                self.machines.append(machine)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def first(self) -> Machine:
        """The machine on which the cluster is begun."""
        return self.machines[0]

    def machine(self, name: str) -> Machine:
        """Return a machine by its name."""
        return next(one for one in self.machines if one.name == name)

    def form(self) -> None:
        """Begin the cluster on the first machine, and let the others join it by token."""
        self._say(f"begin the cluster on {self.first.name}, {self.first.address}")
        self.first.cli("init", "--yes", deadline_s=240)
        for machine in self.machines[1:]:
            self.join(machine)

    def join(self, machine: Machine) -> None:
        """Let a machine join by a token."""
        self._say(f"let {machine.name} join, {machine.address}")
        token = self.first.cli_json("token", "create")["token"]
        machine.cli("join", "-", deadline_s=120, given=token)

    def reach_from_host(self) -> None:
        """Connect this machine to the switch; the link ends with the switch."""
        address = f"{self.range[254]}/{self.range.prefixlen}"
        link = ["ip", "link", "add", HOST_LINK, "type", "veth"]
        _host([*link, "peer", "name", "host0", "netns", str(self.switch.pid)])
        self.switch.run(["ip", "link", "set", "host0", "master", "fabric", "up"])
        _host(["ip", "address", "add", address, "dev", HOST_LINK])
        _host(["ip", "link", "set", HOST_LINK, "up"])

    def make_project(self, project: str, user: str) -> dict[str, str]:
        """Make a project with a user and return an access key."""
        self.first.cli("project", "create", project)
        self.first.cli("user", "create", user)
        self.first.cli("project", "add-user", project, user)
        key: dict[str, str] = self.first.cli_json("key", "create", user, project)
        return key

    def import_demo(self, project: str) -> str:
        """Import the demo image and return its id."""
        ids = []
        for file, form in (("vmlinuz", "kernel"), ("initrd.img", "ramdisk")):
            words = ("--name", f"demo-{form}", "--format", form, "--public")
            made: Any = self.first.cli_json("image", "import", DEMO_IMAGE / file, *words)
            ids.append(made["image_id"])
        made = self.first.cli_json(
            *("image", "import", DEMO_IMAGE / "root.qcow2", "--name", "demo"),
            *("--format", "qcow2", "--kernel", ids[0], "--ramdisk", ids[1]),
            *("--project", project, "--command-line", "root=/dev/vda console=ttyS0 quiet"),
        )
        return str(made["image_id"])


_SETTINGS = """
[compute]
memory_ratio = {ratio:.6f}
"""


def _ratio() -> float:
    """Return the ratio at which this machine offers what one of the machines shall have."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemTotal:\s+(\d+)", file.read(), re.MULTILINE)
    assert found is not None
    return OFFERED_MIB / (int(found[1]) / 1024 - 512)


def _free_range() -> ipaddress.IPv4Network:
    """Return a range that no interface of this machine is in."""
    shown = _host(["ip", "-o", "-4", "address", "show"])
    used = [ipaddress.ip_interface(word).network for word in re.findall(r"inet (\S+)", shown)]
    return next(
        one
        for one in RANGES.subnets(new_prefix=24)
        if not any(one.overlaps(other) for other in used)
    )


def _host(words: Sequence[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
