"""Three RabbitMQs that are one, each on a machine of its own as far as the network goes.

Each is in a network namespace, and all are joined by a bridge in one more. A partition is a rule of
one of them. This machine reaches all by an interface to that bridge.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pika.adapters.blocking_connection import BlockingChannel

from appliance.cluster.management import Access
from tests.services.lossy import Loss, relayed
from tests.services.rabbitmq import ADMIN, Broker, VirtualHost, require_rabbitmq

COUNT = 3
MOVE_S = 60.0
TICK_S = 4
"""Seconds between two signs of life of the brokers; after some of them another is down."""

_MORE = """\
cluster_partition_handling = pause_minority
net_ticktime = {tick}
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = {first}
"""
_TIED = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--")


class Place:
    """A network namespace, which ends with its only process."""

    def __init__(self) -> None:
        sleep = [*_TIED, "unshare", "--net", "--", "sleep", "infinity"]
        self._process = subprocess.Popen(sleep, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{self.pid}/ns/net") == own:
            assert time.monotonic() < deadline, "the namespace was not made"
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that runs there."""
        return ["nsenter", "--target", str(self.pid), "--net", "--"]

    def run(self, *words: str) -> None:
        """Run a command there."""
        run(*self.prefix, *words)

    def destroy(self) -> None:
        """End it; its interfaces go with it."""
        self._process.kill()
        self._process.wait(10)


class Machine(Place):
    """A place with an address."""

    def __init__(self, switch: Place, number: int, address: str) -> None:
        super().__init__()
        self.address = address
        here, there = (["netns", str(one.pid)] for one in (self, switch))
        peer = ["peer", "name", f"p{number}", *there]
        run("ip", "link", "add", "up0", *here, "type", "veth", *peer)
        switch.run("ip", "link", "set", f"p{number}", "master", "fabric", "up")
        self.run("ip", "address", "add", f"{address}/24", "dev", "up0")
        self.run("ip", "link", "set", "up0", "up")

    def cut(self, addresses: Sequence[str]) -> None:
        """Let nothing come from these addresses, or go to them."""
        self.run("nft", "add table ip cut")
        for hook, side in (("input", "saddr"), ("output", "daddr")):
            self.run("nft", f"add chain ip cut {hook} {{ type filter hook {hook} priority 0; }}")
            self.run("nft", f"add rule ip cut {hook} ip {side} {{ {', '.join(addresses)} }} drop")

    def heal(self) -> None:
        """Let all pass again."""
        self.run("nft", "delete table ip cut")


class Member(Broker):
    """One of three brokers."""

    def __init__(self, machine: Machine, first: Member | None) -> None:
        self.machine = machine
        self.address, self.prefix = machine.address, machine.prefix
        super().__init__()
        self._first = first or self
        self.door_port = 0
        if first:
            self.password = first.password
            self._names["mapper"] = first._names["mapper"]
            cookie = self.folder / "home" / ".erlang.cookie"
            cookie.unlink()
            cookie.write_text((first.folder / "home" / ".erlang.cookie").read_text())
            cookie.chmod(0o400)
            self.port, self.admin_port = first.port, first.admin_port
        text = self._text() + _MORE.format(tick=TICK_S, first=self._first.node_name)
        (self.folder / "rabbit.conf").write_text(text)

    @property
    def node_name(self) -> str:
        return f"t@{self.address}"

    @property
    def _environment(self) -> dict[str, str]:
        return {**super()._environment, "RABBITMQ_USE_LONGNAME": "true"}

    def access(self, vhost: str) -> Access:
        """Return how a virtual host is administered: over loopback, where no TLS is needed."""
        url = f"http://{ADMIN}:{self.password}@127.0.0.1:{self.door_port}"
        return Access(urls=(url,), vhost=vhost)

    def accepts(self) -> bool:
        """Say whether it lets anybody in."""
        return self._answers()


class Trio:
    """Three brokers, and what joins and parts them."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    @property
    def lonely(self) -> Member:
        """The one that is cut off; the leaders of all queues are there at first."""
        return self.members[-1]

    def cut(self) -> None:
        """Cut one off from the others, and not from its clients."""
        self.lonely.machine.cut([one.address for one in self.members[:-1]])

    def heal(self) -> None:
        """End the partition, and wait until the one is back."""
        self.lonely.machine.heal()
        deadline = time.monotonic() + MOVE_S
        while not self.lonely.accepts():
            assert time.monotonic() < deadline, self.lonely.log()[-4000:]
            time.sleep(0.2)

    def new_vhost(self) -> OnTrio:
        """Make a virtual host that has nothing in it."""
        return OnTrio(self, self.lonely.new_vhost().name)


class OnTrio(VirtualHost):
    """A virtual host of all three: nodes know them all, first the one that is cut off."""

    def __init__(self, trio: Trio, name: str) -> None:
        super().__init__(trio.lonely, name)
        self.trio = trio

    def _of_all(self, url: str) -> str:
        members = reversed(self.trio.members)
        return ",".join(url.replace(self.broker.address, one.address) for one in members)

    @property
    def url(self) -> str:
        """The URLs of who administers it."""
        return self._of_all(super().url)

    def admit(self, node_id: str, *, is_control: bool) -> str:
        """Make a node's login and its queue; return the URLs with the login."""
        return self._of_all(super().admit(node_id, is_control=is_control))

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Open a channel at one of the majority."""
        with self.trio.members[0].connect(self.name) as connection:
            yield connection.channel()


def run(*words: str) -> None:
    """Run a command; :raises AssertionError: it failed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


@contextmanager
def three() -> Iterator[Trio]:
    """Run three brokers for a while; skips the test when this machine has no RabbitMQ."""
    require_rabbitmq()
    subnet = f"198.18.{random.randrange(1, 255)}"
    with ExitStack() as stack:
        switch = Place()
        stack.callback(switch.destroy)
        switch.run("ip", "link", "add", "fabric", "up", "type", "bridge")
        outside = f"q{os.getpid()}"
        there = ["peer", "name", "p0", "netns", str(switch.pid)]
        run("ip", "link", "add", outside, "type", "veth", *there)
        switch.run("ip", "link", "set", "p0", "master", "fabric", "up")
        run("ip", "address", "add", f"{subnet}.1/24", "dev", outside)
        run("ip", "link", "set", outside, "up")
        members: list[Member] = []
        for number in range(1, COUNT + 1):
            machine = Machine(switch, number, f"{subnet}.{10 + number}")
            stack.callback(machine.destroy)
            member = Member(machine, members[0] if members else None)
            stack.callback(member.destroy)
            member.start()
            door = stack.enter_context(
                relayed(member.admin_port, lambda _piece: Loss.NOTHING, member.address)
            )
            member.door_port = door.port
            members.append(member)
        yield Trio(members)
