"""The hooks of ``vxlan``: a bridged network on each node, and a tunnel between their bridges."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from anynode_network_vxlan import rules, tunnels
from appliance.datapath import links
from appliance.datapath.bridged import BridgedNetworks, More
from appliance.datapath.checks import check_remote
from appliance.errors import ConfigError, Conflict, InputError, Stale
from appliance.firewall import link_local
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import NetworkReach, NetworkSpec, RemotePort

TYPE = "vxlan"
MOST_SEGMENTS = (1 << 24) - 1

_Remotes = Mapping[str, RemotePort]


class Vxlan(BridgedNetworks):
    """All networks of type ``vxlan`` on this node.

    What was told of ports elsewhere is kept by network in memory, and the kernel is the truth of
    what is in force.
    """

    def __init__(self, context: PluginContext, *, dhcp_user: str, local_address: str) -> None:
        super().__init__(
            context, type_name=TYPE, nat_table="anynode_nat_vxlan", dhcp_user=dhcp_user
        )
        self._local = local_address
        self._told: dict[str, dict[str, RemotePort]] = {}

    @hookimpl
    def network_reach(self, network: NetworkSpec, reach: NetworkReach) -> None:
        """Let frames to and from ports on other nodes through, and no others."""
        for remote in reach.remotes:
            check_remote(network, remote)
        with self._lock:
            here = self.prepared_networks().get(network.network_id)
            if here is None:
                raise Conflict(f"{network.network_id} is not prepared on this node.")
            before = self._told.get(network.network_id)
            if before is None and not reach.is_whole:
                raise Stale(f"The ports of {network.network_id} elsewhere were never told whole.")
            news = {remote.port_id: remote for remote in reach.remotes}
            if reach.is_whole or before is None:
                self._put_whole(here, news)
                self._told[network.network_id] = news
            else:
                _put_change(here, before, news, reach.removed_port_ids)

    def _put_whole(self, network: NetworkSpec, remotes: _Remotes) -> None:
        """Make the kernel's entries those of the remotes; what is right already is not touched."""
        want = {rules.member_of(remote) for remote in remotes.values()}
        have = rules.members(network.segment)
        known = rules.macs_elsewhere()
        new = {member for member in want if member not in have or member[1] not in known}
        rules.apply(rules.render_members(network.segment, new, have - want))
        present = tunnels.entries(network)
        tunnels.apply(network, tunnels.difference(present, _entries(network, remotes.values())))

    def check(self, network: NetworkSpec) -> None:
        """Raise unless the network has a number of its own, and this node an end for tunnels."""
        if not 1 <= network.segment <= MOST_SEGMENTS:
            raise InputError(
                f"Segment {network.segment} of {network.network_id} is not 1 to {MOST_SEGMENTS}."
            )
        for other in self.prepared_networks().values():
            is_same = other.network_id == network.network_id
            if is_same and other.segment != network.segment:
                raise Conflict(
                    f"{network.network_id} has the segment {other.segment} on this node, "
                    f"not {network.segment}.",
                    hint="Release the network before it changes its segment.",
                )
            if not is_same and other.segment == network.segment:
                raise Conflict(
                    f"Segment {network.segment} of {network.network_id} is already that of "
                    f"{other.network_id}."
                )
        self._check_local()

    def _check_local(self) -> None:
        if not self._local:
            raise ConfigError(
                "Networks of type vxlan need an address at which other nodes reach this one.",
                hint="Set cluster.address, or join a cluster.",
            )
        try:
            ipaddress.IPv4Address(self._local)
        except ValueError as error:
            raise ConfigError(
                f"{self._local!r}, the end of tunnels, is no IPv4 address."
            ) from error
        if tunnels.underlay_mtu(self._local) is None:
            raise ConfigError(
                f"No link of this node has the address {self._local}, the end of tunnels.",
                hint="Correct cluster.address.",
            )

    def complete(self, network: NetworkSpec) -> None:
        """Make rules first, then the tunnel, and put back what it forwarded."""
        rules.apply([*rules.render_base(), *rules.render_network(network.segment)])
        tunnels.ensure(network, self.mark(network.network_id), self._local)
        told = self._told.get(network.network_id)
        if told is not None:
            self._put_whole(network, told)

    def strip(self, network: NetworkSpec, *, is_last: bool) -> None:
        """Remove the tunnel, then its rules."""
        self._told.pop(network.network_id, None)
        tunnels.remove(tunnels.device_name(network), self.mark(network.network_id))
        _remove_rules(network.segment, is_last=is_last)

    def strip_unrecorded(self, network_id: str, present: Mapping[str, links.Link]) -> None:
        """Remove the tunnel that bears the network's mark, and its rules."""
        for name, found in present.items():
            if found.kind == "vxlan" and found.mark == self.mark(network_id):
                tunnels.remove(name, self.mark(network_id))
                segment = int(name.removeprefix("anvx"))
                _remove_rules(segment, is_last=not self.prepared_networks())

    def look(self, present: Mapping[str, links.Link]) -> More:
        """Return the ports elsewhere that the kernel forwards to, and what is wrong."""
        networks = self.prepared_networks()
        if not networks:
            return More()
        entries = {
            network_id: tunnels.entries(network) for network_id, network in sorted(networks.items())
        }
        remotes = {
            network_id: self._remotes_of(network_id, found) for network_id, found in entries.items()
        }
        warnings = [
            f"Of the rules for tunnels {one} is not as it should be."
            for one in rules.missing([network.segment for network in networks.values()])
        ]
        mtu = tunnels.underlay_mtu(self._local) if self._local else None
        if mtu is None:
            warnings.append(
                f"No link of this node has the address {self._local or 'of its end of tunnels'}."
            )
        for network_id, found in entries.items():
            warnings += self._wrong(networks[network_id], present, mtu)
            warnings += self._lost(networks[network_id], found)
        return More(
            warnings=tuple(warnings),
            remotes={network_id: found for network_id, found in remotes.items() if found},
        )

    def _remotes_of(self, network_id: str, entries: tunnels.Entries) -> tuple[RemotePort, ...]:
        ids = {one.mac: one.port_id for one in self._told.get(network_id, {}).values()}
        addresses: dict[str, list[str]] = {}
        for text, mac in entries.neighbours.items():
            if not ipaddress.ip_address(text).is_link_local:
                addresses.setdefault(mac, []).append(text)
        return tuple(
            RemotePort(
                port_id=ids.get(mac, ""),
                mac=mac,
                addresses=tuple(sorted(addresses.get(mac, ()), key=_order)),
                node_address=node,
            )
            for mac, node in sorted(entries.nodes.items())
        )

    def _wrong(
        self, network: NetworkSpec, present: Mapping[str, links.Link], mtu: int | None
    ) -> Iterator[str]:
        """Say what is wrong with a tunnel; ``mtu`` is that of the link it runs over."""
        name, network_id = tunnels.device_name(network), network.network_id
        found, bridge = present.get(name), present.get(network.bridge)
        if not found:
            yield f"Tunnel {name} of {network_id} is missing."
        elif not found.is_up or not bridge or found.master != bridge.index:
            yield f"Tunnel {name} of {network_id} is not up and in bridge {network.bridge}."
        elif not tunnels.is_quiet(name):
            yield f"Tunnel {name} of {network_id} floods or learns."
        if mtu is not None and mtu < network.mtu + tunnels.OVERHEAD:
            yield (
                f"The link of {self._local} carries {mtu} bytes, and packets of {network_id} "
                f"need {network.mtu + tunnels.OVERHEAD} in a tunnel: they are cut in two."
            )

    def _lost(self, network: NetworkSpec, have: tunnels.Entries) -> Iterator[str]:
        """Say how much is not in force of what was told; nothing where nothing was told."""
        told = self._told.get(network.network_id)
        if told is None:
            return
        change = tunnels.difference(have, _entries(network, told.values()))
        meant = {rules.member_of(remote) for remote in told.values()}
        macs = {mac for _, mac in meant}
        count = change.size + len(meant ^ rules.members(network.segment))
        count += len(macs - rules.macs_elsewhere())
        if count:
            yield f"{count} entries for ports of {network.network_id} elsewhere are wrong."


def _remove_rules(segment: int, *, is_last: bool) -> None:
    rules.apply(rules.render_removal(segment, rules.members(segment), is_last=is_last))


def _put_change(
    network: NetworkSpec,
    told: dict[str, RemotePort],
    news: _Remotes,
    removed_port_ids: Iterable[str],
) -> None:
    """Put a difference in force and note it in ``told``; costs what changes."""
    old = {port_id: told[port_id] for port_id in {*news, *removed_port_ids} if port_id in told}
    have, want = _entries(network, old.values()), _entries(network, news.values())
    was = {rules.member_of(remote) for remote in old.values()}
    is_now = {rules.member_of(remote) for remote in news.values()}
    rules.apply(rules.render_members(network.segment, is_now - was, was - is_now))
    tunnels.apply(network, tunnels.difference(have, want))
    for port_id in removed_port_ids:
        told.pop(port_id, None)
    told.update(news)


def _entries(network: NetworkSpec, remotes: Iterable[RemotePort]) -> tunnels.Entries:
    nodes, neighbours = {}, {}
    for remote in remotes:
        nodes[remote.mac] = remote.node_address
        own = [str(link_local(remote.mac))] if network.cidr6 else []
        for address in (*remote.addresses, *own):
            neighbours[address] = remote.mac
    return tunnels.Entries(nodes=nodes, bridged=frozenset(nodes), neighbours=neighbours)


def _order(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return address.version, int(address)
