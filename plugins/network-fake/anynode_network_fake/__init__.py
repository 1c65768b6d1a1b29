"""Network type ``fake``: networks and ports in memory, with the checks and errors of a real one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from appliance.datapath.checks import (
    check_network,
    check_network_id,
    check_port,
    check_port_id,
    check_remote,
)
from appliance.errors import Conflict, NotFound, Stale
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import (
    AttachedPort,
    NetworkReach,
    NetworkSpec,
    NetworkState,
    PortSpec,
    RemotePort,
    tap_name,
)

api_versions = frozenset({1})
spans_nodes = True


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ``fake`` network plugin."""

    survives: Annotated[
        bool,
        Meta(description="keep networks and ports in a file, so that they outlive the process"),
    ] = False


class FakePort(Struct, frozen=True, kw_only=True):
    """A port as a kernel would have it: its tap, its lease, and whether its link is up."""

    attached: AttachedPort
    lease: PortSpec
    is_up: bool = False


class FakeNode(Struct, kw_only=True):
    """What the node has."""

    networks: dict[str, NetworkSpec] = {}
    ports: dict[str, FakePort] = {}
    remotes: dict[str, dict[str, RemotePort]] = {}


class FakeNetwork:
    """Networks in memory; ``node`` shows a test what there is."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.node = FakeNode()
        if path and path.exists():
            self.node = msgspec.json.decode(path.read_bytes(), type=FakeNode)

    @property
    def is_in_memory(self) -> bool:
        """Whether no other process can see the networks and ports."""
        return self._path is None

    @hookimpl
    def network_prepare(self, network: NetworkSpec) -> None:
        """Remember a network."""
        check_network(network)
        with self._lock:
            for other in self.node.networks.values():
                if other.bridge == network.bridge and other.network_id != network.network_id:
                    raise Conflict(
                        f"Bridge {network.bridge} of {network.network_id} is already that of "
                        f"{other.network_id}."
                    )
            self.node.networks[network.network_id] = network
            self._save()

    @hookimpl
    def network_attach(self, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        """Remember a port, link down; one that is there keeps its link as it is."""
        check_network(network)
        check_port(network, port)
        with self._lock:
            if network.network_id not in self.node.networks:
                raise Conflict(f"{network.network_id} is not prepared on this node.")
            attached = AttachedPort(
                port_id=port.port_id, network_id=network.network_id, tap=tap_name(port.port_id)
            )
            old = self.node.ports.get(port.port_id)
            self.node.ports[port.port_id] = FakePort(
                attached=attached, lease=port, is_up=old is not None and old.is_up
            )
            self._save()
            return attached

    @hookimpl
    def network_raise(self, port_id: str) -> None:
        """Set a link up."""
        with self._lock:
            port = self.node.ports.get(port_id)
            if not port:
                raise NotFound(f"Port {port_id} has no tap on this node.")
            self.node.ports[port_id] = msgspec.structs.replace(port, is_up=True)
            self._save()

    @hookimpl
    def network_detach(self, port_id: str) -> None:
        """Forget a port."""
        check_port_id(port_id)
        with self._lock:
            if self.node.ports.pop(port_id, None):
                self._save()

    @hookimpl
    def network_release(self, network_id: str) -> None:
        """Forget a network."""
        check_network_id(network_id)
        with self._lock:
            left = [
                key for key, one in self.node.ports.items() if one.lease.network_id == network_id
            ]
            if left:
                raise Conflict(f"{network_id} still has ports on this node: {', '.join(left)}.")
            self._told.discard(network_id)
            self.node.remotes.pop(network_id, None)
            if self.node.networks.pop(network_id, None):
                self._save()

    @hookimpl
    def network_reach(self, network: NetworkSpec, reach: NetworkReach) -> None:
        """Remember where ports are that are on other nodes."""
        with self._lock:
            if network.network_id not in self.node.networks:
                raise Conflict(f"{network.network_id} is not prepared on this node.")
            if not reach.is_whole and network.network_id not in self._told:
                raise Stale(f"The ports of {network.network_id} elsewhere were never told whole.")
            for remote in reach.remotes:
                check_remote(network, remote)
            before = self.node.remotes.get(network.network_id, {})
            known = {} if reach.is_whole else dict(before)
            for port_id in reach.removed_port_ids:
                known.pop(port_id, None)
            known |= {remote.port_id: remote for remote in reach.remotes}
            self.node.remotes[network.network_id] = known
            self._told.add(network.network_id)
            self._save()

    @hookimpl
    def network_list(self) -> NetworkState:
        """Return what is remembered."""
        with self._lock:
            return NetworkState(
                network_ids=tuple(sorted(self.node.networks)),
                ports=tuple(port.attached for _, port in sorted(self.node.ports.items())),
                remotes={
                    network_id: tuple(sorted(known.values(), key=lambda one: one.mac))
                    for network_id, known in sorted(self.node.remotes.items())
                    if known
                },
            )

    def _save(self) -> None:
        if self._path:
            new = self._path.with_name(f".{self._path.name}.new")
            new.write_bytes(msgspec.json.encode(self.node))
            os.replace(new, self._path)


def create(settings: Settings, context: PluginContext) -> FakeNetwork:
    """Return the driver, with what an earlier one left where it survives."""
    return FakeNetwork(context.state_dir / "networks.json" if settings.survives else None)
