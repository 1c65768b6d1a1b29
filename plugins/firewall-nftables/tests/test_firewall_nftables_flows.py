"""Real connections of machines with stacks of their own: with each other, the node, the world."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest
from anynode_firewall_nftables.driver import NftablesFirewall
from anynode_firewall_nftables.netfilter import Netfilter

from appliance.firewall import diff
from appliance.model import FirewallRule, NetworkPolicy
from appliance.run import run
from appliance.testing.firewall import allow, make_group, make_network, make_port
from appliance.testing.firewall_lab import FirewallLab
from appliance.testing.namespaces import Namespace, set_up

pytestmark = pytest.mark.node

CUT_WITHIN_S = 5.0
DEADLINE_S = 10.0


class Echo:
    """A server that sends back what it gets, and whatever it is told to."""

    def __init__(self, place: Namespace, port: int) -> None:
        self._listener = place.call(_listen, port)
        self.accepted: list[socket.socket] = []
        self.peers: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                self.accepted.append(connection)
                self.peers.append(peer[0].removeprefix("::ffff:"))
                threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.accepted:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join()


def _listen(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _echo(connection: socket.socket) -> None:
    with suppress(OSError):
        while got := connection.recv(1000):
            connection.sendall(got)


def _connect(address: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=timeout_s)


def connects(place: Namespace, address: str, port: int, *, wanted: bool) -> bool:
    """Say whether a connection can be opened; one that is wanted is waited for."""
    try:
        place.call(_connect, address, port, DEADLINE_S if wanted else 0.5).close()
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def answers(connection: socket.socket, timeout_s: float = DEADLINE_S) -> bool:
    """Say whether the other side sends back what it gets."""
    connection.settimeout(timeout_s)
    try:
        connection.sendall(b"hello")
        return bool(connection.recv(1000))
    except TimeoutError:
        return False


class Site:
    """Two machines ``a`` and ``b`` on a node whose uplink reaches the world."""

    def __init__(self, lab: FirewallLab, stack: ExitStack) -> None:
        self.lab = lab
        self.network = make_network(1)
        lab.add_network(self.network)
        ports = (make_port(self.network, 2, "sg-a"), make_port(self.network, 3, "sg-b"))
        self.a_port, self.b_port = ports
        lab.firewall.guard()
        self.a, self.b = (
            stack.enter_context(lab.add_machine(self.network, port)) for port in ports
        )
        self.world = stack.enter_context(Namespace())
        lab.namespace.connect(self.world, here="up0", there="eth0")
        lab.namespace.call(set_up, "up0", "192.0.2.1/24")
        self.world.call(set_up, "eth0", "192.0.2.2/24")
        translate = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }"
        rule = f"add rule ip t c ip saddr {self.network.cidr} oifname up0 masquerade"
        lab.namespace.call(run, ["nft", f"{translate}; {rule}"], deadline_s=30)
        self.policy = NetworkPolicy(network=self.network, revision=0, ports=ports)

    def allow(
        self, *ingress_of_b: FirewallRule, egress_of_a: tuple[FirewallRule, ...] = ()
    ) -> None:
        """Put a policy in force as a difference to the one before."""
        outward = {"egress": egress_of_a} if egress_of_a else {}
        new = msgspec.structs.replace(
            self.policy,
            revision=self.policy.revision + 1,
            groups=(
                make_group("sg-a", members=self.a_port.addresses, **outward),
                make_group("sg-b", ingress_of_b, self.b_port.addresses),
            ),
        )
        if self.policy.revision:
            self.lab.firewall.update(diff(self.policy, new))
        else:
            self.lab.firewall.sync(new)
        self.policy = new


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    lab = FirewallLab(NftablesFirewall(tmp_path))
    with ExitStack() as stack:
        stack.callback(lab.close)
        yield Site(lab, stack)


@pytest.fixture
def echo_on_b(site: Site) -> Iterator[Echo]:
    server = Echo(site.b, 22)
    yield server
    server.close()


SSH = allow(6, 22, 22, peer="0.0.0.0/0")
SSH6 = allow(6, 22, 22, peer="::/0")


@pytest.mark.parametrize("family", [4, 6])
def test_a_revoked_rule_cuts_an_open_connection(site: Site, echo_on_b: Echo, family: int) -> None:
    address = site.b_port.addresses[family == 6]
    site.allow(SSH, SSH6)
    connection = site.a.call(_connect, address, 22, DEADLINE_S)
    with connection:
        assert answers(connection)
        site.allow(allow(6, 23, 23, peer="0.0.0.0/0"))
        assert not answers(connection, CUT_WITHIN_S / 5), "what the client sends is dropped"
        echo_on_b.accepted[0].sendall(b"pushed")
        connection.settimeout(CUT_WITHIN_S / 5)
        with pytest.raises(TimeoutError):
            connection.recv(1000)
        assert not connects(site.a, address, 22, wanted=False)
        site.allow(SSH, SSH6)
        assert connects(site.a, address, 22, wanted=True)
        assert not answers(connection, 1.5), "the old connection is not taken up in its middle"


def test_a_removed_group_member_is_cut(site: Site, echo_on_b: Echo) -> None:
    site.allow(allow(6, 22, 22, peer="sg-a"))
    with site.a.call(_connect, site.b_port.addresses[0], 22, DEADLINE_S) as connection:
        assert answers(connection)
        emptied = msgspec.structs.replace(site.policy.groups[0], members=())
        new = msgspec.structs.replace(
            site.policy, revision=9, groups=(emptied, site.policy.groups[1])
        )
        site.lab.firewall.update(diff(site.policy, new))
        assert not answers(connection, CUT_WITHIN_S / 5)


def test_changes_that_allow_it_still_leave_a_connection(site: Site, echo_on_b: Echo) -> None:
    site.allow(SSH)
    with site.a.call(_connect, site.b_port.addresses[0], 22, DEADLINE_S) as connection:
        assert answers(connection)
        for rules in ((SSH, SSH6), (allow(6, 1, 100, peer="10.64.1.2/32"),), (SSH,)):
            site.allow(*rules)
            assert answers(connection), rules
        site.lab.firewall.sync(site.policy)
        assert answers(connection)


def test_the_world_is_reached_behind_one_address(site: Site) -> None:
    server = Echo(site.world, 80)
    site.allow()
    try:
        for machine in (site.a, site.b):
            with machine.call(_connect, "192.0.2.2", 80, DEADLINE_S) as connection:
                assert answers(connection)
        assert server.peers == ["192.0.2.1", "192.0.2.1"]
        with site.a.call(_connect, "192.0.2.2", 80, DEADLINE_S) as connection:
            assert answers(connection)
            site.allow(egress_of_a=(allow(6, 443, 443, peer="0.0.0.0/0"),))
            assert not answers(connection, CUT_WITHIN_S / 5), "egress was revoked"
        assert not connects(site.a, "192.0.2.2", 80, wanted=False)
        assert connects(site.b, "192.0.2.2", 80, wanted=True)
    finally:
        server.close()


def test_the_world_comes_in_by_rules_only(site: Site, echo_on_b: Echo) -> None:
    route = ["ip", "route", "add", site.network.cidr, "via", "192.0.2.1"]
    site.world.call(run, route, deadline_s=30)
    site.allow()
    assert not connects(site.world, site.b_port.addresses[0], 22, wanted=False)
    site.allow(allow(6, 22, 22, peer="192.0.2.2/32"))
    with site.world.call(_connect, site.b_port.addresses[0], 22, DEADLINE_S) as connection:
        assert answers(connection)
        site.allow()
        assert not answers(connection, CUT_WITHIN_S / 5)


def test_the_node_comes_in_by_rules_only_and_is_closed_to_instances(
    site: Site, echo_on_b: Echo
) -> None:
    node = site.lab.namespace
    on_node = Echo(node, 2222)
    try:
        site.allow()
        assert not connects(node, site.b_port.addresses[0], 22, wanted=False)
        assert not connects(site.a, site.network.gateway, 2222, wanted=False)
        assert not connects(site.a, "192.0.2.1", 2222, wanted=False)
        site.allow(SSH)
        with node.call(_connect, site.b_port.addresses[0], 22, DEADLINE_S) as connection:
            assert answers(connection)
            site.allow()
            assert not answers(connection, CUT_WITHIN_S / 5)
    finally:
        on_node.close()


def test_two_networks_of_a_node_reach_each_other_by_rules(site: Site, echo_on_b: Echo) -> None:
    """Routed from bridge to bridge: egress of one network, ingress of the other."""
    other = make_network(2)
    site.lab.add_network(other)
    port = make_port(other, 2, "sg-c")
    group = make_group("sg-c", members=port.addresses)
    site.lab.firewall.sync(NetworkPolicy(network=other, revision=1, ports=(port,), groups=(group,)))
    address = site.b_port.addresses[0]
    with site.lab.add_machine(other, port) as machine:
        site.allow()
        assert not connects(machine, address, 22, wanted=False)
        site.allow(allow(6, 22, 22, peer=f"{port.addresses[0]}/32"))
        with machine.call(_connect, address, 22, DEADLINE_S) as connection:
            assert answers(connection)
            closed = msgspec.structs.replace(group, egress=())
            site.lab.firewall.sync(
                NetworkPolicy(network=other, revision=2, ports=(port,), groups=(closed,))
            )
            assert not answers(connection, CUT_WITHIN_S / 5)


def test_no_flow_outlives_its_instance(site: Site, echo_on_b: Echo) -> None:
    site.allow(SSH)
    with site.a.call(_connect, site.b_port.addresses[0], 22, DEADLINE_S) as connection:
        assert answers(connection)
        gone = msgspec.structs.replace(site.policy, revision=5, ports=(site.a_port,))
        site.lab.firewall.update(diff(site.policy, gone))
        assert not answers(connection, CUT_WITHIN_S / 5)
        back = msgspec.structs.replace(site.policy, revision=6)
        site.lab.firewall.update(diff(gone, back))
        assert not answers(connection, CUT_WITHIN_S / 5), "the address is another instance's now"
        assert connects(site.a, site.b_port.addresses[0], 22, wanted=True)
    site.lab.firewall.forget(site.network.network_id)
    assert not _flows_of(site, site.a_port.addresses[0])


def test_what_a_server_pushes_goes_on_through_changes(site: Site, echo_on_b: Echo) -> None:
    """The far end speaks first after every change, wherever the connection was opened."""
    route = ["ip", "route", "add", site.network.cidr, "via", "192.0.2.1"]
    site.world.call(run, route, deadline_s=30)
    in_world = Echo(site.world, 80)
    other = allow(6, 23, 23, peer="0.0.0.0/0")
    site.allow(SSH, SSH6, other)
    b4, b6 = site.b_port.addresses
    try:
        with ExitStack() as stack:
            pairs = []
            for place, address, port, server in (
                (site.a, b4, 22, echo_on_b),
                (site.a, b6, 22, echo_on_b),
                (site.lab.namespace, b4, 22, echo_on_b),
                (site.world, b4, 22, echo_on_b),
                (site.a, "192.0.2.2", 80, in_world),
            ):
                client = stack.enter_context(place.call(_connect, address, port, DEADLINE_S))
                assert answers(client)
                pairs.append((client, server.accepted[-1]))
            for rules in ((SSH, SSH6), (SSH, SSH6, other), (SSH6, SSH)):
                site.allow(*rules)
                for client, accepted in pairs:
                    accepted.sendall(b"pushed")
                    client.settimeout(DEADLINE_S)
                    assert client.recv(1000) == b"pushed"
                    assert answers(client)
            site.allow()
            for number, (client, accepted) in enumerate(pairs):
                accepted.sendall(b"pushed")
                client.settimeout(DEADLINE_S if number == 4 else CUT_WITHIN_S / 5)
                with suppress(TimeoutError):
                    assert client.recv(1000) == b"pushed"
                    assert number == 4, "only what the instance asked of the world goes on"
    finally:
        in_world.close()


def _flows_of(site: Site, address: str) -> list[str]:
    flows = site.lab.namespace.call(Netfilter().flows)
    return [str(flow) for flow in flows if address in (str(flow.source), str(flow.destination))]
