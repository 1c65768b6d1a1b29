"""The datapath role: taps, rules and metadata of its node's ports; asked by its compute role."""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path

import msgspec

from appliance.datapath.metadata_server import MetadataServer
from appliance.datapath.metadata_tree import Subject as MetadataSubject
from appliance.datapath.policy import PolicyKeeper
from appliance.datapath.record import NETWORK, PORT, NetworkRecord, PortRecord
from appliance.errors import Conflict, NotFound
from appliance.hooks import Firewall, Network
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.journal import Journal
from appliance.messages import (
    AttachPort,
    DetachPort,
    Done,
    GuardPort,
    PolicyChanged,
    PortAttached,
    RaisePort,
    UnguardPort,
    node_topic,
)
from appliance.model import NetworkSpec
from appliance.node import NodeParts
from appliance.plugin_loader import used_names
from appliance.role import Periodic, Role

log = logging.getLogger(__name__)
api_versions = frozenset({1})

POLICY_SILENCE_S = 3.0
REPAIR_EVERY_S = 30.0


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return DatapathRole()


class DatapathRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Answer the questions about ports, hear of policy, and keep the firewall whole."""
        datapath = Datapath(parts)
        return Role(
            name="datapath",
            topic=node_topic("datapath", parts.node_id),
            calls={
                AttachPort: datapath.attach,
                GuardPort: datapath.guard,
                RaisePort: datapath.raise_link,
                DetachPort: datapath.detach,
                UnguardPort: datapath.unguard,
            },
            hears={PolicyChanged: datapath.policy_changed},
            periodic=(
                Periodic(
                    name="policy",
                    every_s=POLICY_SILENCE_S,
                    run=lambda: datapath.policies.refresh_silent(POLICY_SILENCE_S),
                ),
                Periodic(name="repair", every_s=REPAIR_EVERY_S, run=datapath.repair),
            ),
            start=datapath.start,
            stop=datapath.stop,
        )


class Datapath:
    """The networks and ports of one node."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        name = parts.config.firewall.driver
        self._firewall = Firewall(name, parts.plugin(Firewall.group, name))
        self._drivers: dict[str, Network] = {}
        self._making = threading.Lock()
        self._preparing = threading.Lock()
        self._journal = Journal(parts.state_dir / "datapath.sqlite")
        self._ports = self._journal.all(PORT, PortRecord)
        self._networks = self._journal.all(NETWORK, NetworkRecord)
        self._by_address: dict[tuple[str, str], PortRecord] = {}
        for record in self._ports.values():
            self._index(record)
        self.policies = PolicyKeeper(
            parts.bus,
            self._firewall,
            parts.node_id,
            parts.world.clock,
            parts.config.bus.call_deadline_s,
        )
        self._metadata = MetadataServer(self._lookup, _token_key(parts.state_dir))

    def _index(self, record: PortRecord) -> None:
        for address in record.port.addresses:
            self._by_address[record.port.network_id, address] = record

    def _lookup(self, network_id: str, address: str) -> MetadataSubject | None:
        record = self._by_address.get((network_id, address))
        network = self._networks.get(network_id)
        if record is None or network is None:
            return None
        return MetadataSubject(
            metadata=record.metadata,
            ports=(record.port,),
            networks=(network.network,),
            block_devices=record.block_devices,
        )

    def _driver(self, network: NetworkSpec) -> Network:
        return self._driver_named(network.type)

    def _driver_named(self, name: str) -> Network:
        # One at a time: two objects of one plugin would not know of each other's locks.
        with self._making:
            driver = self._drivers.get(name)
            if driver is None:
                driver = Network(name, self._parts.plugin(Network.group, name))
                self._drivers[name] = driver
            return driver

    def _driver_of(self, port_id: str) -> Network | None:
        record = self._ports.get(port_id)
        network = self._networks.get(record.port.network_id) if record else None
        return self._driver(network.network) if network else None

    def start(self) -> None:
        """Guard first, then bring back the networks that have ports here."""
        self._firewall.guard()
        for network_id in self._firewall.state().revisions:
            if network_id not in self._networks:
                log.warning("rules of %s are in force but not in the journal", network_id)
                self._firewall.forget(network_id)
        for record in self._networks.values():
            self._prepare(record.network)

    def _prepare(self, network: NetworkSpec) -> None:
        # One at a time: the first ports of a network come at once, and so may a repair.
        with self._preparing:
            self._driver(network).prepare(network)
            if self._parts.config.network.metadata:
                self._metadata.listen(network.network_id, network.bridge)
            self.policies.watch(network.network_id)

    def stop(self) -> None:
        """End what serves; taps, rules and leases stay for the instances that run."""
        self._metadata.stop()
        self._journal.close()

    def attach(self, question: AttachPort) -> PortAttached:
        """Make a port's tap, link down; its network first if it is not here yet."""
        network, port = question.network, question.port
        known = self._networks.get(network.network_id)
        if known is None or known.network != network:
            self._prepare(network)
            record = NetworkRecord(network=network)
            self._journal.put(NETWORK, network.network_id, record)
            self._networks[network.network_id] = record
        before = self._ports.get(port.port_id)
        kept = PortRecord(
            port=port,
            metadata=question.metadata,
            block_devices=question.block_devices,
            is_guarded=before.is_guarded if before else False,
        )
        self._journal.put(PORT, port.port_id, kept)
        self._ports[port.port_id] = kept
        self._index(kept)
        return PortAttached(port=self._driver(network).attach(network, port))

    def guard(self, question: GuardPort) -> Done:
        """Put a port's rules in force and read them back.

        :raises NotFound: there is no such port here.
        :raises Conflict: the rules are not in force.
        """
        network_id = self._network_of(question.port_id)
        self._note(question.port_id, is_guarded=True)
        revision = self.policies.guard(network_id, question.port_id)
        return Done(detail=f"policy revision {revision}")

    def raise_link(self, question: RaisePort) -> Done:
        """Let frames of a port pass.

        :raises Conflict: its rules are not in force; nothing was changed.
        """
        network_id = self._network_of(question.port_id)
        if not self.policies.is_guarded(network_id, question.port_id):
            raise Conflict(f"Port {question.port_id} has no rules in force, so it stays down.")
        driver = self._driver_of(question.port_id)
        assert driver is not None
        driver.raise_link(question.port_id)
        return Done()

    def _network_of(self, port_id: str) -> str:
        record = self._ports.get(port_id)
        if record is None:
            raise NotFound(f"Port {port_id} is not on this node.")
        return record.port.network_id

    def detach(self, question: DetachPort) -> Done:
        """Remove tap, lease and metadata of a port. No error when there is none."""
        for port_id in self._meant(question):
            self._detach(port_id)
        return Done()

    def _meant(self, question: DetachPort | UnguardPort) -> list[str]:
        """Return the ports that a question is about: all known ones when it names none."""
        if question.port_id:
            return [question.port_id]
        known = list(self._ports.items())
        return [key for key, one in known if one.port.instance_id == question.instance_id]

    def _detach(self, port_id: str) -> None:
        driver = self._driver_of(port_id)
        record = self._ports.get(port_id)
        if record is None or driver is None:
            # Its record was lost with the journal; the tap may be there all the same.
            for name in used_names(self._parts.config, Network.group):
                self._driver_named(name).detach(port_id)
            return
        driver.detach(port_id)
        for address in record.port.addresses:
            self._by_address.pop((record.port.network_id, address), None)
        self._note(port_id, is_attached=False)

    def unguard(self, question: UnguardPort) -> Done:
        """Remove the rules of a port; one that still has a tap carries nothing from then on."""
        for port_id in self._meant(question):
            self.policies.drop(port_id)
            if port_id in self._ports:
                self._note(port_id, is_guarded=False)
        return Done()

    def _note(self, port_id: str, **changes: bool) -> None:
        """Write what there is of a port, and forget it when there is nothing any more."""
        record = msgspec.structs.replace(self._ports[port_id], **changes)
        if record.is_attached or record.is_guarded:
            self._journal.put(PORT, port_id, record)
            self._ports[port_id] = record
        else:
            self._journal.delete(PORT, port_id)
            del self._ports[port_id]

    def policy_changed(self, message: PolicyChanged) -> None:
        """Ask for the difference, if ports of that network are here."""
        if message.network_id in self.policies.watched():
            self.policies.refresh(message.network_id)

    def repair(self) -> None:
        """Bring back what somebody removed: rules, and the services of networks."""
        self.policies.repair()
        for record in list(self._networks.values()):
            if self._driver(record.network).list().warnings:
                log.warning("network %s is not whole; it is repaired", record.network.network_id)
                self._prepare(record.network)


def _token_key(state_dir: Path) -> bytes:
    """Return the key of this node's metadata tokens, made the first time."""
    path = state_dir / "metadata.key"
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        temporary.replace(path)
    return path.read_bytes()
