"""One node for all tests, with a world outside of it and two instances that are up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.cloud import Cloud, Instance
from tests.node.commands import CommandWatch
from tests.node.inside import Inside
from tests.node.place import NODE_OUTSIDE, PORT_OUTSIDE, WORLD, Place
from tests.rig import ROOT, Rig
from tests.rig.fixtures import require

DEMO_IMAGE = Path("/var/cache/anynode/demo-image")
CANARY = "canary-7c1f0b54"
"""What is in the user data of the first instance, and must be nowhere else."""

USER_DATA = f"""#!/bin/sh
# {CANARY}
echo "user data ran on $(hostname)" > /root/user-data-ran
"""
NEEDED = (
    *("unshare", "nsenter", "ip", "nft", "dnsmasq", "ssh", "ping"),
    *("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img"),
)


@pytest.fixture(scope="session")
def world() -> Iterator[Rig]:
    """What is beyond the node: another machine, on a switch."""
    require(*NEEDED)
    with Rig("world") as rig:
        yield rig


@pytest.fixture(scope="session")
def outside(world: Rig) -> Iterator[Inside]:
    """Calls that see the network as a program out in the world does."""
    inside = Inside(world.pid)
    yield inside
    inside.close()


@pytest.fixture(scope="session")
def listening(only_place: Place, outside: Inside) -> Iterator[str]:
    """What a server in the world tells everybody from the node: the address that it sees."""
    server = outside(socket.create_server, (WORLD, PORT_OUTSIDE))

    def serve() -> None:
        # It ends with an error when the server is shut down.
        with contextlib.suppress(OSError):
            while True:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(peer[0].encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield NODE_OUTSIDE
    server.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    server.close()


@pytest.fixture(scope="session")
def only_place(world: Rig) -> Iterator[Place]:
    """The node, started once."""
    if not (DEMO_IMAGE / "root.qcow2").exists():
        subprocess.run([sys.executable, ROOT / "image/demo/build.py"], check=True)
    with Rig("node") as rig:
        rig.join(world, f"{NODE_OUTSIDE}/24")
        world.run(["ip", "address", "add", f"{WORLD}/24", "dev", "fabric"])
        world.run(["ip", "route", "add", "10.64.0.0/24", "via", NODE_OUTSIDE])
        place = Place(rig)
        try:
            place.start()
            yield place
        finally:
            place.close()


@pytest.fixture(scope="session")
def only_cloud(only_place: Place) -> Cloud:
    """A project with a user, an access key, a key pair and the demo image."""
    only_place.cli("project", "create", "tests")
    only_place.cli("user", "create", "tester")
    only_place.cli("project", "add-user", "tests", "tester")
    cloud = Cloud(only_place, only_place.cli_json("key", "create", "tester", "tests"))
    cloud.image_id = import_demo(only_place, "demo")
    cloud.make_key_pair("tests")
    return cloud


def import_demo(place: Place, name: str, *more: str) -> str:
    """Import the demo image and return its id."""
    ids = []
    for file, form in (("vmlinuz", "kernel"), ("initrd.img", "ramdisk")):
        words = ("--name", f"{name}-{form}", "--format", form, "--public")
        ids.append(place.cli_json("image", "import", DEMO_IMAGE / file, *words)["image_id"])
    made = place.cli_json(
        *("image", "import", DEMO_IMAGE / "root.qcow2", "--name", name, "--format", "qcow2"),
        *("--kernel", ids[0], "--ramdisk", ids[1], "--project", "tests"),
        *("--command-line", "root=/dev/vda console=ttyS0 quiet", *more),
    )
    return str(made["image_id"])


@pytest.fixture
def place(only_place: Place) -> Place:
    """The node, up: it is started again when a test before has left it ended."""
    if not only_place.is_running:
        only_place.start()
    return only_place


@pytest.fixture
def cloud(place: Place, only_cloud: Cloud) -> Cloud:
    """The user's view of the node, which is up."""
    return only_cloud


@pytest.fixture(scope="session")
def seen_commands() -> set[str]:
    """The command lines of all that ran while the first instance was launched."""
    return set()


@pytest.fixture(scope="session")
def first(only_cloud: Cloud, seen_commands: set[str]) -> Instance:
    """The first instance: all that a launch may bring, open to the node by SSH."""
    group = only_cloud.make_group("open")
    with CommandWatch(only_cloud.place.rig.pid) as watch:
        instance = only_cloud.launch(
            SecurityGroupIds=[group],
            UserData=USER_DATA,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "first"}]}
            ],
        )
        only_cloud.wait("instance_running", instance.instance_id)
    seen_commands.update(watch.seen)
    instance.wait_booted()
    return instance


@pytest.fixture(scope="session")
def second(only_cloud: Cloud, first: Instance) -> Instance:
    """The second instance: it lets in the node by SSH and nobody else, and asks for tokens."""
    group = only_cloud.make_group("closed")
    instance = only_cloud.launch(
        SecurityGroupIds=[group], MetadataOptions={"HttpTokens": "required"}
    )
    instance.wait_state("running")
    instance.wait_booted()
    return instance


@pytest.fixture
def one(place: Place, first: Instance) -> Instance:
    """The first instance, up, whatever a test before did to it."""
    first.bring_up()
    return first


@pytest.fixture
def other(place: Place, second: Instance) -> Instance:
    """The second instance, up, whatever a test before did to it."""
    second.bring_up()
    return second
