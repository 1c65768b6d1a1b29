"""``flatdhcp`` in namespaces of its own: links, leases, names, the way out, and nothing left."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import pytest
from anynode_network_flatdhcp import Settings, create

from appliance.datapath import links
from appliance.datapath.bridged import reachable_directory
from appliance.errors import ConfigError, Conflict
from appliance.hooks import Network
from appliance.hookspecs import PluginContext, PluginSource
from appliance.model import NetworkSpec, PortSpec
from appliance.testing.dhcp import ask_dhcp
from appliance.testing.namespaces import (
    Machine,
    Namespace,
    NetworkInside,
    add_route,
    open_tap,
    set_up,
)
from appliance.testing.network import NetworkContract, make_network, make_port

pytestmark = pytest.mark.node

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGED_IS_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
ANNOUNCED = re.compile(r"fd00:64::/64 .* expires")
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Node(Namespace):
    """A node with the plugin, and what must be the same before and after."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.state_dir, self.run_dir = directory / "state", directory / "run"
        self.state_dir.mkdir(mode=0o700)
        self.run_dir.mkdir(mode=0o700)
        self.call(FORWARD.write_text, "0\n")
        self.call(self.run, "nft", "add", "table", "inet", "foreign")
        self.call(self.run, "ip", "link", "add", "foreign0", "type", "bridge")

    def start(self, settings: Settings | None = None) -> Network:
        """Return the facade of a plugin object as a freshly started node has it."""
        context = PluginContext(
            node_name="n1",
            state_dir=self.state_dir,
            run_dir=self.run_dir,
            plugins=cast(PluginSource, None),
        )
        return NetworkInside("flatdhcp", create(settings or Settings(), context), self)

    def run(self, *command: str) -> str:
        """Run a program and return what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def dnsmasq_pids(self) -> list[int]:
        """Return the processes whose command line names our run directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.run_dir).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def inventory(self) -> dict[str, object]:
        """Return everything that a plugin could leave behind."""
        reachable = reachable_directory(self.run_dir)
        return {
            "links": sorted(self.call(links.links)),
            "rules": self.call(self.run, "nft", "list", "ruleset"),
            "forward": self.call(FORWARD.read_text),
            "files": sorted(str(path) for path in self.run_dir.rglob("*")),
            "mode": self.run_dir.stat().st_mode,
            "reachable": reachable != self.run_dir and reachable.exists(),
            "processes": self.dnsmasq_pids(),
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Return a node that must be as it was when all ports and networks are gone."""
    with Node(tmp_path) as node:
        before = node.inventory()
        yield node
        driver = node.start()
        for port in driver.list().ports:
            driver.detach(port.port_id)
        for network_id in driver.list().network_ids:
            driver.release(network_id)
        assert node.inventory() == before


@pytest.fixture
def driver(node: Node) -> Network:
    return node.start()


@pytest.fixture
def network() -> NetworkSpec:
    return make_network("flatdhcp")


class TestFlatDhcp(NetworkContract):
    @pytest.fixture
    def network_type(self) -> str:
        return "flatdhcp"

    @pytest.fixture
    def driver(self, node: Node) -> Network:
        return node.start()


def wait_for(condition: Callable[[], bool], deadline_s: float = 15.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def bring_up(driver: Network, network: NetworkSpec, port: PortSpec) -> str:
    tap = driver.attach(network, port).tap
    driver.raise_link(port.port_id)
    return tap


def ask_dhcp6(mac: str) -> bytes:
    """Ask for an address by DHCPv6 and return the offer, nothing when there is none yet."""
    client = b"\0\1\0\x0a\0\3\0\1" + bytes.fromhex(mac.replace(":", ""))
    solicit = b"\1\1\2\3" + client + b"\0\3\0\x0c" + bytes(12) + b"\0\x08\0\2\0\0"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.5)
        try:
            asking.bind(("::", 546))
            asking.sendto(solicit, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
            return asking.recv(1500)
        except OSError:
            return b""


def resolve(machine: Machine, name: str, server: str) -> str:
    done = machine.call(
        subprocess.run,
        ["busybox", "nslookup", "-type=a", name, server],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.partition("Name:")[2]


def frame(target: str, source: str, text: bytes) -> bytes:
    """Return an Ethernet frame of a type that no stack answers to."""
    addresses = bytes.fromhex((target + source).replace(":", ""))
    return addresses + b"\x88\xb5" + text.ljust(46, b"\0")


def texts_until(fd: int, last: bytes) -> list[bytes]:
    """Return the texts of the test frames that arrive, up to and with the given one."""
    seen: list[bytes] = []
    while last not in seen:
        assert select.select([fd], [], [], 10)[0], f"{last!r} did not arrive, only {seen}"
        got = os.read(fd, 65600)
        if got[12:14] == b"\x88\xb5" and not got[14:].startswith(b"warm"):
            seen.append(got[14:].rstrip(b"\0"))
    return seen


def wait_until_heard(sender: int, mac: str, receiver: int) -> None:
    """Wait until both taps forward: the kernel begins a moment after their links are up."""

    def is_heard() -> bool:
        os.write(sender, frame(BROADCAST, mac, b"warm"))
        return bool(select.select([receiver], [], [], 0)[0])

    wait_for(is_heard)


# -- DHCP and DNS ---------------------------------------------------------------------------------


def test_lease_is_the_ports_own(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    ports = [make_port(network, number) for number in (1, 2)]
    driver.prepare(network)
    for port in ports:
        tap = bring_up(driver, network, port)
        with Machine(node, tap, port.mac) as machine:
            given = ask_dhcp(machine, tmp_path)
        assert given["ip"] == port.addresses[0]
        assert given["router"] == given["dns"] == given["serverid"] == network.gateway
        assert given["hostname"] == port.hostname
        assert given["domain"] == network.domain
        assert given["mtu"] == str(network.mtu)
        assert given["subnet"] == "255.255.255.0"


def test_unknown_card_gets_nothing(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    port = make_port(network)
    driver.prepare(network)
    tap = bring_up(driver, network, port)
    with Machine(node, tap, "06:a0:00:00:00:77") as stranger:
        assert ask_dhcp(stranger, tmp_path, tries=2) == {}
    with Machine(node, tap, port.mac) as machine:
        assert ask_dhcp(machine, tmp_path)["ip"] == port.addresses[0]


def test_detached_port_gets_nothing_and_its_address_is_free_at_once(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    old = make_port(network, 1)
    new = msgspec.structs.replace(make_port(network, 2), addresses=old.addresses)
    keeper = make_port(network, 3)
    driver.prepare(network)
    tap = bring_up(driver, network, keeper)
    with Machine(node, bring_up(driver, network, old), old.mac) as machine:
        assert ask_dhcp(machine, tmp_path)["ip"] == old.addresses[0]
    driver.detach(old.port_id)
    with Machine(node, tap, old.mac) as machine:
        assert ask_dhcp(machine, tmp_path, tries=2) == {}
    with Machine(node, bring_up(driver, network, new), new.mac) as machine:
        assert ask_dhcp(machine, tmp_path)["ip"] == old.addresses[0]


@pytest.mark.parametrize("hostname", ["ignore", "infinite", "1h", "12", "net", "a" * 63])
def test_words_of_dnsmasq_are_only_hostnames(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path, hostname: str
) -> None:
    port = msgspec.structs.replace(make_port(network), hostname=hostname)
    driver.prepare(network)
    with Machine(node, bring_up(driver, network, port), port.mac) as machine:
        given = ask_dhcp(machine, tmp_path)
        assert given["ip"] == port.addresses[0]
        assert given["hostname"] == hostname
        assert given["lease"] == "3600"


def test_t53_names_follow_the_ports_also_two_of_one_hostname(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    one = make_port(network, 1)
    twin = msgspec.structs.replace(make_port(network, 2), hostname=one.hostname)
    driver.prepare(network)
    with Machine(node, bring_up(driver, network, one), one.mac) as machine:
        machine.call(set_up, "eth0", f"{one.addresses[0]}/24")
        name = f"{one.hostname}.{network.domain}"
        wait_for(lambda: one.addresses[0] in resolve(machine, name, network.gateway))
        driver.attach(network, twin)
        wait_for(lambda: twin.addresses[0] in resolve(machine, name, network.gateway))
        assert one.addresses[0] in resolve(machine, name, network.gateway)
        driver.detach(twin.port_id)
        wait_for(lambda: twin.addresses[0] not in resolve(machine, name, network.gateway))
        driver.attach(network, msgspec.structs.replace(one, hostname="renamed"))
        wait_for(lambda: not resolve(machine, name, network.gateway))
        assert one.addresses[0] in resolve(machine, f"renamed.{network.domain}", network.gateway)


def test_dnsmasq_has_no_rights(node: Node, driver: Network, network: NetworkSpec) -> None:
    driver.prepare(network)
    (pid,) = node.dnsmasq_pids()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert "0" not in status["Uid"].split()
    net_admin, net_raw, net_bind = 1 << 12, 1 << 13, 1 << 10
    assert int(status["CapEff"], 16) & ~(net_admin | net_raw | net_bind) == 0
    for config in node.run_dir.rglob("*.conf"):
        assert config.stat().st_mode & 0o777 == 0o600


@pytest.mark.faults("services: dnsmasq", quick=True)
def test_dead_dnsmasq_is_named_and_comes_back(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    port = make_port(network)
    driver.prepare(network)
    tap = bring_up(driver, network, port)
    (pid,) = node.dnsmasq_pids()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not node.dnsmasq_pids())
    (warning,) = driver.list().warnings
    assert network.network_id in warning
    leases = sorted(reachable_directory(node.run_dir).rglob("eni-*"))
    told = [path.read_bytes() for path in leases]
    assert leases
    driver.prepare(network)
    assert driver.list().warnings == ()
    assert [path.read_bytes() for path in leases] == told
    with Machine(node, tap, port.mac) as machine:
        assert ask_dhcp(machine, tmp_path)["ip"] == port.addresses[0]


def test_restarted_node_keeps_what_runs(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    port = make_port(network)
    driver.prepare(network)
    tap = bring_up(driver, network, port)
    pids = node.dnsmasq_pids()
    before = driver.list()
    with Machine(node, tap, port.mac) as machine:
        assert ask_dhcp(machine, tmp_path)["ip"] == port.addresses[0]
        machine.call(set_up, "eth0", f"{port.addresses[0]}/24")
        again = node.start()
        again.prepare(network)
        again.attach(network, port)
        assert again.list() == before
        assert node.dnsmasq_pids() == pids
        assert node.call(links.links)[tap].is_up
        other = msgspec.structs.replace(network, dns=("192.0.2.54",))
        again.prepare(other)
        assert len(node.dnsmasq_pids()) == 1
        assert node.dnsmasq_pids() != pids
        assert ask_dhcp(machine, tmp_path)["ip"] == port.addresses[0]


def test_a_process_with_a_reused_id_is_not_ours(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    (pid_file,) = node.run_dir.rglob("dnsmasq.pid")
    (pid,) = node.dnsmasq_pids()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not node.dnsmasq_pids())
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            pid_file.write_text(f"{bystander.pid}\n")
            assert driver.list().warnings
            driver.prepare(network)
            driver.release(network.network_id)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_missing_user_leaves_nothing(node: Node, network: NetworkSpec) -> None:
    driver = node.start(Settings(dhcp_user="nobody-of-that-name"))
    with pytest.raises(ConfigError, match="nobody-of-that-name"):
        driver.prepare(network)
    assert driver.list().network_ids == ()


def test_run_directory_is_used_when_it_can_be_reached(tmp_path: Path) -> None:
    assert reachable_directory(Path("/run/some")) == Path("/run/some")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert reachable_directory(closed / "run").parent == Path("/run")
    assert reachable_directory(closed / "run") != reachable_directory(closed / "other")


# -- IPv6 -----------------------------------------------------------------------------------------


def test_ipv6_is_announced_and_leased(node: Node, driver: Network, tmp_path: Path) -> None:
    network = msgspec.structs.replace(
        make_network("flatdhcp"), cidr6="fd00:64::/64", gateway6="fd00:64::1"
    )
    port = make_port(network)
    port = msgspec.structs.replace(port, addresses=(*port.addresses, "fd00:64::5"))
    driver.prepare(network)
    assert driver.list().warnings == ()
    with Machine(node, bring_up(driver, network, port), port.mac) as machine:
        wait_for(lambda: ANNOUNCED.search(machine.call(node.run, "ip", "-6", "route")) is not None)
        wait_for(lambda: b"\xfd\0\0\x64" + bytes(11) + b"\5" in machine.call(ask_dhcp6, port.mac))
        # There is no way out, so the node must not say that there is.
        assert "default" not in machine.call(node.run, "ip", "-6", "route")
        assert ask_dhcp(machine, tmp_path)["ip"] == port.addresses[0]


def test_without_ipv6_the_node_has_no_such_address(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    tap = bring_up(driver, network, make_port(network))
    plugged = node.call(open_tap, tap)
    try:
        for link in (network.bridge, tap):
            wait_for(partial(is_up, node, link))
            assert "inet6" not in show(node, link)
    finally:
        os.close(plugged)


def is_up(node: Node, link: str) -> bool:
    return "state UP" in show(node, link)


def show(node: Node, link: str) -> str:
    return node.call(node.run, "ip", "address", "show", link)


# -- links ----------------------------------------------------------------------------------------


def test_nothing_passes_before_raise_and_nothing_of_the_node_at_it(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    one, two = make_port(network, 1), make_port(network, 2)
    driver.prepare(network)
    near = node.call(open_tap, bring_up(driver, network, one))
    far = node.call(open_tap, driver.attach(network, two).tap)
    try:
        with pytest.raises(OSError, match="Input/output"):
            os.write(far, frame(BROADCAST, two.mac, b"early"))
        os.write(near, frame(BROADCAST, one.mac, b"early"))
        driver.raise_link(two.port_id)
        wait_until_heard(near, one.mac, far)
        assert os.read(far, 65600) == frame(BROADCAST, one.mac, b"warm")
    finally:
        os.close(near)
        os.close(far)


def test_a_sniffer_sees_nothing_foreign(node: Node, driver: Network, network: NetworkSpec) -> None:
    ports = [make_port(network, number) for number in (1, 2, 3)]
    driver.prepare(network)
    one, two, sniffer = (node.call(open_tap, bring_up(driver, network, port)) for port in ports)
    macs = [port.mac for port in ports]
    try:
        for sender, mac, receiver in ((sniffer, macs[2], one), (one, macs[0], two)):
            wait_until_heard(sender, mac, receiver)
        # The sniffer claims to be the second instance, and the gateway.
        os.write(sniffer, frame(macs[0], macs[1], b"I am two"))
        os.write(sniffer, frame(macs[0], links.bridge_mac(network.network_id), b"I am gateway"))
        os.write(one, frame(macs[1], macs[0], b"for two"))
        os.write(one, frame("06:00:00:00:00:99", macs[0], b"for nobody"))
        os.write(one, frame(links.bridge_mac(network.network_id), macs[0], b"for the node"))
        os.write(one, frame(BROADCAST, macs[0], b"marker"))
        assert texts_until(two, b"marker") == [b"for two", b"marker"]
        assert texts_until(sniffer, b"marker") == [b"marker"]
    finally:
        for fd in (one, two, sniffer):
            os.close(fd)


def test_tap_belongs_to_root(node: Node, driver: Network, network: NetworkSpec) -> None:
    driver.prepare(network)
    tap = driver.attach(network, make_port(network)).tap
    assert "user root" in node.call(node.run, "ip", "-d", "link", "show", tap)


def test_foreign_bridge_is_not_touched(node: Node, driver: Network, network: NetworkSpec) -> None:
    node.call(node.run, "ip", "link", "add", network.bridge, "type", "bridge")
    before = node.call(node.run, "ip", "-d", "link", "show", network.bridge)
    with pytest.raises(ConfigError, match=network.bridge):
        driver.prepare(network)
    driver.release(network.network_id)
    assert node.call(node.run, "ip", "-d", "link", "show", network.bridge) == before
    node.call(node.run, "ip", "link", "del", network.bridge)


def test_foreign_tap_is_not_touched(node: Node, driver: Network, network: NetworkSpec) -> None:
    port = make_port(network)
    driver.prepare(network)
    tap = driver.attach(network, port).tap
    driver.detach(port.port_id)
    node.call(node.run, "ip", "tuntap", "add", tap, "mode", "tap")
    node.call(node.run, "ip", "link", "set", tap, "alias", "anynode:other:subnet-9:eni-9")
    with pytest.raises(Conflict):
        driver.attach(network, port)
    driver.detach(port.port_id)
    assert tap in node.call(links.links)
    assert driver.list().ports == ()
    node.call(node.run, "ip", "link", "del", tap)


@pytest.mark.parametrize("taken", ["10.64.1.200/30", "10.0.0.1/8", "10.64.1.9/32"])
def test_range_in_use_is_refused(
    node: Node, driver: Network, network: NetworkSpec, taken: str
) -> None:
    node.call(set_up, "foreign0", taken)
    with pytest.raises(ConfigError, match=r"overlaps .* foreign0") as refused:
        driver.prepare(network)
    assert "network.cidr" in refused.value.hint
    assert driver.list().network_ids == ()


def test_range_that_is_routed_elsewhere_is_refused(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    node.call(set_up, "foreign0", "192.0.2.1/24")
    node.call(add_route, "10.64.0.0/16", "192.0.2.9")
    with pytest.raises(ConfigError, match="overlaps"):
        driver.prepare(network)


def test_bridge_is_put_right(node: Node, driver: Network, network: NetworkSpec) -> None:
    driver.prepare(network)
    node.call(node.run, "ip", "address", "flush", "dev", network.bridge)
    node.call(set_up, network.bridge, "10.64.9.1/24")
    driver.prepare(msgspec.structs.replace(network, mtu=1400))
    shown = node.call(node.run, "ip", "address", "show", network.bridge)
    assert "inet 10.64.1.1/24" in shown
    assert "inet 169.254.169.254/32" in shown
    assert "10.64.9.1" not in shown
    assert "mtu 1400" in shown


def test_ports_work_again_after_their_bridge_was_deleted(
    node: Node, driver: Network, network: NetworkSpec, tmp_path: Path
) -> None:
    one, two = make_port(network, 1), make_port(network, 2)
    driver.prepare(network)
    taps = [bring_up(driver, network, port) for port in (one, two)]
    with Machine(node, taps[0], one.mac) as machine, Machine(node, taps[1], two.mac) as other:
        assert ask_dhcp(machine, tmp_path)["ip"] == one.addresses[0]
        other.call(set_up, "eth0", f"{two.addresses[0]}/24")
        node.call(node.run, "ip", "link", "del", network.bridge)
        for lease in reachable_directory(node.run_dir).rglob(one.port_id):
            lease.unlink()
        assert [text for text in driver.list().warnings if network.bridge in text]
        driver.prepare(network)
        assert set(driver.list().warnings) == {
            *(f"Port {port.port_id} is not in bridge {network.bridge}." for port in (one, two)),
            f"Port {one.port_id} is unknown to DHCP.",
        }
        for port in (one, two):
            driver.attach(network, port)
        assert driver.list().warnings == ()
        assert all(node.call(links.links)[tap].is_up for tap in taps)
        assert ask_dhcp(machine, tmp_path)["ip"] == one.addresses[0]
        machine.call(set_up, "eth0", f"{one.addresses[0]}/24")
        with machine.call(udp, one.addresses[0]) as sender, other.call(udp, "", 7000) as receiver:
            sender.sendto(b"hello", (two.addresses[0], 7000))
            assert receiver.recvfrom(100)[0] == b"hello"


def test_what_a_crash_left_is_found(node: Node, driver: Network, network: NetworkSpec) -> None:
    """A bridge and a tap that were made but not yet marked, and a record that was lost."""
    port = make_port(network)
    driver.prepare(network)
    tap = driver.attach(network, port).tap
    node.call(node.run, "ip", "link", "set", tap, "alias", "")
    node.call(node.run, "ip", "link", "set", network.bridge, "alias", "")
    assert [one.port_id for one in driver.list().ports] == [port.port_id]
    driver.prepare(network)
    driver.attach(network, port)
    (node.state_dir / "networks.json").unlink()
    again = node.start()
    state = again.list()
    assert state.network_ids == (network.network_id,)
    assert [one.port_id for one in state.ports] == [port.port_id]
    with pytest.raises(Conflict):
        again.release(network.network_id)
    again.detach(port.port_id)
    again.prepare(network)
    assert again.list().warnings == ()
    # What forwarding was before us went with the record.
    again.release(network.network_id)
    node.call(FORWARD.write_text, "0\n")


# -- the way out ----------------------------------------------------------------------------------


def udp(address: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.settimeout(10)
    made.bind((address, port))
    return made


def test_the_way_out_and_back(node: Node, driver: Network, network: NetworkSpec) -> None:
    port = make_port(network)
    with Namespace() as outside:
        node.connect(outside, here="up0", there="down0")
        node.call(set_up, "up0", "192.0.2.2/24")
        outside.call(set_up, "down0", "192.0.2.1/24")
        driver.prepare(network)
        with Machine(node, bring_up(driver, network, port), port.mac) as machine:
            machine.call(set_up, "eth0", f"{port.addresses[0]}/24")
            machine.call(add_route, "default", network.gateway)
            with (
                outside.call(udp, "192.0.2.1", 7000) as server,
                machine.call(udp, port.addresses[0]) as client,
            ):
                client.sendto(b"hello", ("192.0.2.1", 7000))
                said, peer = server.recvfrom(100)
                assert (said, peer[0]) == (b"hello", "192.0.2.2")
                server.sendto(b"back", peer)
                assert client.recvfrom(100)[0] == b"back"


def test_what_is_only_bridged_keeps_its_source(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    if BRIDGED_IS_FILTERED.exists():
        node.call(BRIDGED_IS_FILTERED.write_text, "1")
    one, two = make_port(network, 1), make_port(network, 2)
    driver.prepare(network)
    taps = [bring_up(driver, network, port) for port in (one, two)]
    with Machine(node, taps[0], one.mac) as first, Machine(node, taps[1], two.mac) as second:
        first.call(set_up, "eth0", f"{one.addresses[0]}/24")
        second.call(set_up, "eth0", f"{two.addresses[0]}/24")
        first.call(add_route, "default", network.gateway)
        with first.call(udp, one.addresses[0]) as sender, second.call(udp, "", 7000) as receiver:
            for target in ("255.255.255.255", two.addresses[0]):
                sender.sendto(b"hello", (target, 7000))
                assert receiver.recvfrom(100)[1][0] == one.addresses[0]


def test_forwarding_is_as_before_at_the_end(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    for before in ("0\n", "1\n"):
        node.call(FORWARD.write_text, before)
        driver.prepare(network)
        driver.prepare(make_network("flatdhcp", 2))
        assert node.call(FORWARD.read_text) == "1\n"
        driver.release(network.network_id)
        assert node.call(FORWARD.read_text) == "1\n"
        driver.release("subnet-00000000000000002")
        assert node.call(FORWARD.read_text) == before
    node.call(FORWARD.write_text, "0\n")


def test_missing_rule_and_forwarding_are_named(
    node: Node, driver: Network, network: NetworkSpec
) -> None:
    driver.prepare(network)
    node.call(node.run, "nft", "delete", "table", "ip", "anynode_nat")
    node.call(FORWARD.write_text, "0\n")
    assert len(driver.list().warnings) == 2
    driver.prepare(network)
    assert driver.list().warnings == ()
