"""Networks that are a bridge on each node, with DHCP, DNS and a way out: hooks of their plugins.

What is to be ours is recorded first, and forgotten last.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.datapath import dnsmasq, forwarding, links, nat
from appliance.datapath.checks import (
    check_network,
    check_network_id,
    check_port,
    check_port_id,
    interface,
)
from appliance.datapath.network_record import RecordFile
from appliance.errors import Conflict, NotFound
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import (
    AttachedPort,
    NetworkSpec,
    NetworkState,
    PortSpec,
    RemotePort,
    tap_name,
)


@dataclass(frozen=True, kw_only=True)
class More:
    """What a type has besides bridges, taps and DHCP servers: see :class:`NetworkState`."""

    warnings: tuple[str, ...] = ()
    remotes: dict[str, tuple[RemotePort, ...]] = field(default_factory=dict)


class BridgedNetworks:
    """All networks of one type on this node; calls from several threads take turns.

    A plugin whose networks need more than that is a subclass that fills ``check``, ``complete``,
    ``strip``, ``strip_unrecorded`` and ``look``.

    :param type_name: the plugin's name, in the mark of every link.
    :param nat_table: the nft table of the type's way out, which no other type has.
    """

    def __init__(
        self, context: PluginContext, *, type_name: str, nat_table: str, dhcp_user: str
    ) -> None:
        state_dir, run_dir = context.state_dir, context.run_dir
        self._type = type_name
        self._nat_table = nat_table
        self._user = dhcp_user
        self._private = run_dir
        self._reachable = reachable_directory(run_dir)
        self._record = RecordFile(state_dir / "networks.json")
        self._lock = threading.RLock()

    @hookimpl
    def network_prepare(self, network: NetworkSpec) -> None:
        """Make bridge, way out and DHCP server of a network, or put them right."""
        check_network(network)
        with self._lock:
            known = self._record.value.networks.get(network.network_id)
            self._check_before(network, known)
            self.check(network)
            self._record.write(self._record.value.with_network(network))
            try:
                self._make(network)
            except BaseException:
                if not known:
                    self._unmake(network)
                raise

    def _check_before(self, network: NetworkSpec, known: NetworkSpec | None) -> None:
        """Raise unless the network may be made; changes nothing."""
        if known and known.bridge != network.bridge:
            raise Conflict(
                f"{network.network_id} has the bridge {known.bridge} on this node, "
                f"not {network.bridge}.",
                hint="Release the network before it changes its bridge.",
            )
        for other in self._record.value.networks.values():
            if other.bridge == network.bridge and other.network_id != network.network_id:
                raise Conflict(
                    f"Bridge {network.bridge} of {network.network_id} is already that of "
                    f"{other.network_id}."
                )
        links.check_bridge(network.bridge, self.mark(network.network_id), is_known=bool(known))
        if not links.link(network.bridge):
            links.check_range_is_free(network.cidr, network_id=network.network_id)

    def _make(self, network: NetworkSpec) -> None:
        gateways = [interface(network.cidr, network.gateway)]
        if network.gateway6:
            gateways.append(interface(network.cidr6, network.gateway6))
        links.ensure_bridge(
            network.bridge,
            self.mark(network.network_id),
            mtu=network.mtu,
            gateways=tuple(gateways),
            is_known=True,
        )
        self.complete(network)
        nat.apply(list(self._record.value.networks.values()), self._nat_table)
        forwarding.allow(self._private.parent, self._type)
        self._make_reachable()
        dnsmasq.ensure_running(network, self._places(network.network_id), self._user)

    @hookimpl
    def network_attach(self, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        """Make a port's tap, link down, and its lease."""
        check_network(network)
        check_port(network, port)
        tap = tap_name(port.port_id)
        with self._lock:
            if network.network_id not in self._record.value.networks:
                raise Conflict(f"{network.network_id} is not prepared on this node.")
            is_new = links.link(tap) is None
            self._record.write(self._record.value.with_port(port.port_id, network.network_id))
            try:
                self._make_port(network, port, tap)
            except BaseException:
                if is_new:
                    self.network_detach(port.port_id)
                raise
        return AttachedPort(port_id=port.port_id, network_id=network.network_id, tap=tap)

    def _make_port(self, network: NetworkSpec, port: PortSpec, tap: str) -> None:
        links.ensure_tap(
            tap,
            self.mark(network.network_id, port.port_id),
            bridge=network.bridge,
            mac=port.mac,
            mtu=network.mtu,
        )
        places = self._places(network.network_id)
        dnsmasq.ensure_running(network, places, self._user)
        dnsmasq.add_port(network, port, places)

    @hookimpl
    def network_raise(self, port_id: str) -> None:
        """Set the link of an attached port up."""
        if not links.raise_tap(tap_name(port_id), port_id=port_id):
            raise NotFound(f"Port {port_id} has no tap on this node.")

    @hookimpl
    def network_detach(self, port_id: str) -> None:
        """Remove tap and lease of a port."""
        check_port_id(port_id)
        with self._lock:
            if self._is_ours(port_id):
                links.remove_tap(tap_name(port_id), port_id=port_id)
            # Not the record's networks: a lease must go with its tap when the record was lost, too.
            for directory in self._private.iterdir():
                dnsmasq.remove_port(port_id, self._places(directory.name))
            self._record.write(self._record.value.without_port(port_id))

    def _is_ours(self, port_id: str) -> bool:
        """Say whether we made the tap of that port, or meant to."""
        found = links.link(tap_name(port_id))
        if found and found.mark:
            return found.mark.type == self._type
        return port_id in self._record.value.ports

    @hookimpl
    def network_release(self, network_id: str) -> None:
        """Remove bridge, way out and DHCP server of a network."""
        check_network_id(network_id)
        with self._lock:
            present = links.links()
            left = [one.port_id for one in self._ports(present) if one.network_id == network_id]
            if left:
                raise Conflict(f"{network_id} still has ports on this node: {', '.join(left)}.")
            network = self._record.value.networks.get(network_id)
            if network:
                self._unmake(network)
            else:
                self._unmake_unrecorded(network_id, present)

    def _unmake_unrecorded(self, network_id: str, present: Mapping[str, links.Link]) -> None:
        """Remove what is left of a network whose record was lost."""
        dnsmasq.remove(self._places(network_id))
        self.strip_unrecorded(network_id, present)
        for name in present:
            links.remove_bridge(name, self.mark(network_id), is_known=False)

    def _unmake(self, network: NetworkSpec) -> None:
        rest = self._record.value.without_network(network.network_id)
        dnsmasq.remove(self._places(network.network_id))
        nat.apply(list(rest.networks.values()), self._nat_table)
        self.strip(network, is_last=not rest.networks)
        links.remove_bridge(network.bridge, self.mark(network.network_id), is_known=True)
        if not rest.networks:
            forwarding.give_back(self._private.parent, self._type)
            self._remove_reachable()
        self._record.write(rest)

    @hookimpl
    def network_list(self) -> NetworkState:
        """Return our networks and taps as the kernel has them, and what is wrong with them."""
        with self._lock:
            present = links.links()
            bridges = {
                link.mark.network_id
                for link in present.values()
                if link.kind == "bridge" and link.mark and link.mark.type == self._type
            }
            more = self.look(present)
            return NetworkState(
                network_ids=tuple(sorted(bridges | set(self._record.value.networks))),
                ports=tuple(self._ports(present)),
                warnings=(*self._warnings(present, bridges), *more.warnings),
                remotes=more.remotes,
            )

    def _ports(self, present: Mapping[str, links.Link]) -> Iterator[AttachedPort]:
        """Return the taps of ours; one without a mark is that of the port we meant it for."""
        meant = {tap_name(port_id): port_id for port_id in self._record.value.ports}
        for name, link in sorted(present.items()):
            if link.kind != "tun" or not links.TAP_NAME.fullmatch(name):
                continue
            if link.mark and link.mark.type == self._type:
                port_id, network_id = link.mark.port_id, link.mark.network_id
            elif link.mark is None and name in meant:
                port_id, network_id = meant[name], self._record.value.ports[meant[name]]
            else:
                continue
            yield AttachedPort(port_id=port_id, network_id=network_id, tap=name)

    def _warnings(self, present: Mapping[str, links.Link], bridges: set[str]) -> Iterator[str]:
        record = self._record.value
        translated = nat.applied(self._nat_table)
        taps = list(self._ports(present))
        ports = {one.port_id: one.network_id for one in taps}
        for network_id, network in sorted(record.networks.items()):
            places = self._places(network_id)
            if network_id not in bridges:
                yield f"Bridge {network.bridge} of {network_id} is missing."
            if not dnsmasq.is_running(places):
                yield f"The DHCP server (dnsmasq) of {network_id} does not run."
            if network_id not in translated:
                yield f"The rule that lets {network_id} out is missing."
            for one in taps:
                if one.network_id == network_id and not _is_in(present, one.tap, network.bridge):
                    yield f"Port {one.port_id} is not in bridge {network.bridge}."
            known = dnsmasq.known_ports(places)
            here = {port_id for port_id, owner in ports.items() if owner == network_id}
            yield from (f"Port {one} is unknown to DHCP." for one in sorted(here - known))
            yield from (f"DHCP knows port {one}, which has no tap." for one in sorted(known - here))
        for network_id in sorted(bridges - set(record.networks)):
            yield f"The bridge of {network_id} is not in the record of networks."
        if record.networks and not forwarding.is_allowed():
            yield "net.ipv4.ip_forward is 0: instances do not reach beyond this node."

    def _places(self, network_id: str) -> dnsmasq.Places:
        return dnsmasq.Places(
            private=self._private / network_id,
            reachable=self._reachable / f"{network_id}.dhcp",
        )

    def _make_reachable(self) -> None:
        self._reachable.mkdir(mode=0o711, exist_ok=True)
        self._reachable.chmod(0o711)

    def _remove_reachable(self) -> None:
        if self._reachable == self._private:
            self._private.chmod(0o700)
        elif self._reachable.exists():
            self._reachable.rmdir()

    def mark(self, network_id: str, port_id: str = "") -> links.Mark:
        """Return the mark of a link of ours."""
        return links.Mark(type=self._type, network_id=network_id, port_id=port_id)

    def prepared_networks(self) -> dict[str, NetworkSpec]:
        """Return the networks that are to be here, by id."""
        return self._record.value.networks

    # What follows is for types whose networks are more than a bridge.

    def check(self, network: NetworkSpec) -> None:
        """Raise unless the network may be made; changes nothing."""

    def complete(self, network: NetworkSpec) -> None:
        """Make what the network needs besides its bridge, which is there; safe to repeat."""

    def strip(self, network: NetworkSpec, *, is_last: bool) -> None:
        """Remove what :meth:`complete` has made, before the bridge goes; safe to repeat.

        :param is_last: no other network of the type is here.
        """

    def strip_unrecorded(self, network_id: str, present: Mapping[str, links.Link]) -> None:
        """Remove the same of a network whose record was lost."""

    def look(self, present: Mapping[str, links.Link]) -> More:
        """Return what there is of it, and what is wrong."""
        return More()


def reachable_directory(run_dir: Path) -> Path:
    """Return where files lie that dnsmasq's user reads: ``run_dir`` when all may pass above it.

    Otherwise a directory below ``/run`` that belongs to this ``run_dir`` alone.
    """
    if all(parent.stat().st_mode & 0o001 for parent in run_dir.resolve().parents):
        return run_dir
    own = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return Path("/run") / f"anynode-dhcp-{own}"


def _is_in(present: Mapping[str, links.Link], tap: str, bridge: str) -> bool:
    owner = present.get(bridge)
    return owner is not None and present[tap].master == owner.index
