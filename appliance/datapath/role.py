"""The datapath role: taps, rules and metadata of its node's ports; asked by its compute role."""

from __future__ import annotations

import logging
import secrets
from contextlib import AbstractContextManager
from pathlib import Path

from appliance.datapath.metadata_server import MetadataServer
from appliance.datapath.metadata_tree import Subject as MetadataSubject
from appliance.datapath.networks import Networks
from appliance.datapath.policy import PolicyKeeper
from appliance.datapath.ports import Ports
from appliance.datapath.reach import ReachKeeper
from appliance.datapath.record import PortRecord
from appliance.datapath.turns import Turns
from appliance.errors import AnynodeError, Conflict, NotFound
from appliance.files import write_whole
from appliance.hooks import Firewall, Network
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.journal import Journal
from appliance.messages import (
    AttachPort,
    DetachPort,
    Done,
    GuardPort,
    KeepPorts,
    PolicyChanged,
    PortAttached,
    RaisePort,
    UnguardPort,
    node_topic,
)
from appliance.model import NetworkSpec, PortSpec
from appliance.node import NodeParts
from appliance.plugin_loader import used_names
from appliance.role import Periodic, Role

log = logging.getLogger(__name__)
api_versions = frozenset({1})

POLICY_SILENCE_S = 3.0
REPAIR_EVERY_S = 30.0
FOLLOW_EVERY_S = 0.5
POLICY_SHARE = 0.4
"""Share of a call's deadline that a question for a policy has: whoever waits for a port learns why
it has no rules, even when another question about the same network was under way before."""

GRACE_DEADLINES = 2
"""Deadlines of a call after which a port must belong to an instance that the node holds."""


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
                KeepPorts: datapath.keep,
            },
            hears={PolicyChanged: datapath.policy_changed},
            periodic=(
                Periodic(
                    name="policy",
                    every_s=POLICY_SILENCE_S,
                    run=lambda: datapath.policies.refresh_silent(POLICY_SILENCE_S),
                ),
                Periodic(name="news", every_s=FOLLOW_EVERY_S, run=datapath.policies.follow),
                Periodic(name="repair", every_s=REPAIR_EVERY_S, run=datapath.repair),
            ),
            start=datapath.start,
            stop=datapath.stop,
        )


class Datapath:
    """The networks and ports of one node.

    Calls about one instance take turns, so that an undo comes after what it undoes, even when
    whoever asked for that has given up waiting.
    """

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._deadline_s = parts.config.bus.call_deadline_s
        name = parts.config.firewall.driver
        self._firewall = Firewall(name, parts.plugin(Firewall.group, name))
        self._journal = Journal(parts.state_dir / "datapath.sqlite", parts.world.crash)
        self._ports = Ports(self._journal, parts.world.clock)
        self._networks = Networks(parts, self._journal, self._prepared)
        self._turns = Turns()
        self._left: dict[str, tuple[str, ...]] = {}
        self.policies = PolicyKeeper(
            parts.bus,
            self._firewall,
            ReachKeeper(self._networks.spanning),
            parts.node_id,
            parts.world.clock,
            POLICY_SHARE * self._deadline_s,
        )
        self._metadata = MetadataServer(self.describe, _token_key(parts.state_dir))

    def describe(self, network_id: str, address: str) -> MetadataSubject | None:
        """Return what the metadata service tells whoever has an address; ``None``: nothing."""
        record = self._ports.at(network_id, address)
        network = self._networks.get(network_id)
        if record is None or network is None:
            return None
        return MetadataSubject(
            metadata=record.metadata,
            ports=(record.port,),
            networks=(network,),
            block_devices=record.block_devices,
        )

    def start(self) -> None:
        """Guard first, then bring back the networks that have ports here."""
        self._firewall.guard()
        for network_id in self._firewall.state().revisions:
            if self._networks.get(network_id) is None:
                log.warning("rules of %s are in force but not in the journal", network_id)
                self._firewall.forget(network_id)
        for network in self._networks.all():
            self._networks.prepare(network)
        self._repair_networks()

    def _prepared(self, network: NetworkSpec) -> None:
        if self._parts.config.network.metadata:
            self._metadata.listen(network.network_id, network.bridge)
        self.policies.watch(network.network_id)

    def stop(self) -> None:
        """End what serves; taps, rules and leases stay for the instances that run."""
        self._metadata.stop()
        self._journal.close()

    def _turn(self, instance_id: str) -> AbstractContextManager[None]:
        return self._turns.turn(instance_id, self._deadline_s)

    def attach(self, question: AttachPort) -> PortAttached:
        """Make a port's tap, link down; its network first if it is not here yet.

        :raises Conflict: one of its addresses is that of another port here.
        :raises Unavailable: other work on the instance does not end; nothing was changed.
        """
        network, port = question.network, question.port
        self._free_addresses(port)
        with self._turn(question.instance_id):
            self._networks.ensure(network)
            before = self._ports.get(port.port_id)
            self._ports.put(
                PortRecord(
                    port=port,
                    metadata=question.metadata,
                    block_devices=question.block_devices,
                    is_guarded=before.is_guarded if before else False,
                )
            )
            return PortAttached(port=self._networks.driver(network.type).attach(network, port))

    def _free_addresses(self, port: PortSpec) -> None:
        """Remove ports that have outlived their instance and still have an address of this one.

        The network role decides who outlived whom: it may be this question that comes too late.
        """
        for address in port.addresses:
            for rival in self._ports.rivals(port.port_id, port.network_id, address):
                old = rival.port
                if self.policies.owner(port.network_id, address) == old.port_id:
                    raise Conflict(
                        f"{address} is the address of {old.port_id}, not {port.port_id}."
                    )
                log.warning(
                    "port %s of %s still had %s, which is that of %s now: it is removed",
                    old.port_id,
                    old.instance_id,
                    address,
                    port.port_id,
                )
                with self._turn(old.instance_id):
                    self._clear(old.port_id)

    def guard(self, question: GuardPort) -> Done:
        """Put a port's rules in force and read them back.

        :raises NotFound: there is no such port here.
        :raises Conflict: the rules are not in force.
        """
        with self._turn(question.instance_id):
            network_id = self._network_of(question.port_id)
            self._ports.note(question.port_id, is_guarded=True)
            revision = self.policies.guard(network_id, question.port_id)
        return Done(detail=f"policy revision {revision}")

    def raise_link(self, question: RaisePort) -> Done:
        """Let frames of a port pass.

        :raises Conflict: its rules are not in force; nothing was changed.
        """
        with self._turn(question.instance_id):
            network_id = self._network_of(question.port_id)
            if not self.policies.is_guarded(network_id, question.port_id):
                raise Conflict(f"Port {question.port_id} has no rules in force, so it stays down.")
            driver = self._networks.driver_of(network_id)
            assert driver is not None
            driver.raise_link(question.port_id)
        return Done()

    def _network_of(self, port_id: str) -> str:
        record = self._ports.get(port_id)
        if record is None:
            raise NotFound(f"Port {port_id} is not on this node.")
        return record.port.network_id

    def detach(self, question: DetachPort) -> Done:
        """Remove tap, lease and metadata of a port. No error when there is none.

        :raises Unavailable: other work on the instance does not end; nothing was changed.
        """
        with self._turn(question.instance_id):
            for port_id in self._meant(question):
                self._detach(port_id)
        return Done()

    def _meant(self, question: DetachPort | UnguardPort) -> list[str]:
        """Return the ports that a question is about: all known ones when it names none."""
        if question.port_id:
            return [question.port_id]
        ports = (record.port for record in self._ports.all())
        return [port.port_id for port in ports if port.instance_id == question.instance_id]

    def _detach(self, port_id: str) -> None:
        record = self._ports.get(port_id)
        driver = self._networks.driver_of(record.port.network_id) if record else None
        if driver is None:
            # Its record was lost with the journal; the tap may be there all the same.
            for name in used_names(self._parts.config, Network.group):
                self._networks.driver(name).detach(port_id)
            return
        driver.detach(port_id)
        self._ports.note(port_id, is_attached=False)

    def unguard(self, question: UnguardPort) -> Done:
        """Remove the rules of a port; one that still has a tap carries nothing from then on."""
        with self._turn(question.instance_id):
            for port_id in self._meant(question):
                self._unguard(port_id)
        return Done()

    def _unguard(self, port_id: str) -> None:
        self.policies.drop(port_id)
        self._ports.note(port_id, is_guarded=False)

    def _clear(self, port_id: str) -> None:
        self._detach(port_id)
        self._unguard(port_id)

    def keep(self, question: KeepPorts) -> Done:
        """Remove the ports of instances that the node does not hold, unless they have just come.

        One that cannot be removed now is logged, and removed at the next question.
        """
        held = set(question.instance_ids)
        removed = []
        for port in [record.port for record in self._ports.all()]:
            if port.instance_id in held or not self._is_old(port.port_id):
                continue
            try:
                if self._clear_old(port):
                    removed.append(port.port_id)
            except AnynodeError as error:
                log.warning("port %s of nobody could not be removed: %s", port.port_id, error)
        return Done(detail=", ".join(removed))

    def _is_old(self, port_id: str) -> bool:
        """Say whether whoever asks about what is held must have known of the port."""
        return self._ports.age_s(port_id) > GRACE_DEADLINES * self._deadline_s

    def _clear_old(self, port: PortSpec) -> bool:
        with self._turn(port.instance_id):
            if not self._is_old(port.port_id):
                return False
            log.warning(
                "port %s of %s is removed: the node does not hold that instance",
                port.port_id,
                port.instance_id,
            )
            self._clear(port.port_id)
            return True

    def policy_changed(self, message: PolicyChanged) -> None:
        """Ask for the difference, if ports of that network are here and it is news."""
        self.policies.hear(message.network_id, message.revision, message.rest_s)

    def repair(self) -> None:
        """Bring back what somebody removed: rules, and the networks with their ports."""
        try:
            self.policies.repair()
        except AnynodeError as error:
            log.warning("rules could not be looked after: %s", error)
        self._repair_networks()

    def _repair_networks(self) -> None:
        """Put networks right of which something is wrong; say what was done, and what is left.

        What cannot be put right is tried again each time and said once.
        """
        before = self._networks.warnings()
        done = {
            name: [self._repair(one) for one in self._networks.all() if one.type == name]
            for name in before
        }
        after = self._networks.warnings() if before else {}
        for name, wrong in before.items():
            left = after.get(name, ())
            if not wrong == left == self._left.get(name):
                log.warning(
                    "%s networks were not whole: %s Done: %s. Still wrong: %s",
                    name,
                    " ".join(wrong),
                    "; ".join(done[name]),
                    " ".join(left) or "nothing.",
                )
        self._left = after

    def _repair(self, network: NetworkSpec) -> str:
        """Prepare a network and attach its ports again; return what came of it."""
        try:
            self._networks.prepare(network)
        except AnynodeError as error:
            return f"{network.network_id} could not be prepared: {error}"
        records = [one for one in self._ports.all() if one.port.network_id == network.network_id]
        ports = [one.port for one in records if one.is_attached]
        failures = []
        for port in ports:
            try:
                self._attach_again(network, port)
            except AnynodeError as error:
                failures.append(f", {port.port_id} could not: {error}")
        self.policies.repeat_reach(network.network_id)
        count = f"{len(ports) - len(failures)} of its {len(ports)} ports attached again"
        return f"{network.network_id} prepared, {count}{''.join(failures)}"

    def _attach_again(self, network: NetworkSpec, port: PortSpec) -> None:
        with self._turn(port.instance_id):
            record = self._ports.get(port.port_id)
            if record is None or not record.is_attached:
                return
            driver = self._networks.driver(network.type)
            driver.attach(network, record.port)
            if record.is_guarded and self.policies.is_guarded(network.network_id, port.port_id):
                driver.raise_link(port.port_id)


def _token_key(state_dir: Path) -> bytes:
    """Return the key of this node's metadata tokens, made the first time."""
    path = state_dir / "metadata.key"
    if not path.exists():
        write_whole(path, secrets.token_bytes(32))
    return path.read_bytes()
