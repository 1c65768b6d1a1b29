"""The contracts of all hooks: what a plugin may fill, and what the caller relies on.

Each class is one entry-point group. A plugin is a module, named by the entry point, with

* ``api_versions``: the set of versions of this page that it understands,
* ``Settings``: a ``msgspec.Struct`` with a default, a unit and a description per field (optional);
  what starts a daemon has a boolean ``start_daemon``, which is off where somebody only looks,
* ``create(settings, context)``: returns the object whose ``@hookimpl`` methods are called,
* ``spans_nodes``: ``True`` in a network plugin that fills ``network_reach``: its networks are
  the same on every node. One of another plugin belongs to the node that it was made on (optional),
* ``overhead_bytes``: by how many bytes such a plugin's packets grow between nodes (optional),
* ``withdraw(settings, context)``: ends what ``create`` has started on this machine, a daemon for
  example; called when the node is taken off it, after all instances and ports (optional).

``context`` is a :class:`PluginContext`. Arguments and results are values of ``appliance.model``:
frozen and serialisable, so that node-side hooks can run in a small privileged process. Every
hook of a *driver* must be filled by exactly one plugin and must answer with its type, unless its
text begins with *Optional*: then it may also be filled by none.
Unless its text says otherwise a hook may raise any ``AnynodeError``, leaves nothing half-made when
it raises, is safe to repeat with the same arguments, and is not called twice at once for the
same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pluggy
from msgspec import Struct

from appliance.model import (
    AttachedPort,
    ConsoleOutput,
    Finding,
    FirewallState,
    HttpRequest,
    Identity,
    InjectionRequest,
    InjectionResult,
    InstanceDefinition,
    InstanceFact,
    NetworkPolicy,
    NetworkReach,
    NetworkSpec,
    NetworkState,
    NodeCapacity,
    NodeView,
    PlacementRequest,
    PolicyDelta,
    PortSpec,
    PowerEvent,
    Ranking,
    TimelineEntry,
)

if TYPE_CHECKING:
    from appliance.hooks import Filters, Weights
    from appliance.node import NodeParts
    from appliance.role import Role

API_VERSIONS = frozenset({1})
"""The versions of this page that this release serves."""

hookspec = pluggy.HookspecMarker("appliance")
hookimpl = pluggy.HookimplMarker("appliance")


class NoSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a plugin that has none."""


class Credential(Struct, frozen=True, kw_only=True):
    """An access key with its secret in clear; never logged, never kept longer than a request."""

    access_key_id: str
    secret: str
    identity: Identity


class Credentials(Protocol):
    """Access keys, for authentication plugins."""

    def find(self, access_key_id: str) -> Credential | None:
        """Return the usable access key of that id; ``None`` when unknown, disabled or orphaned."""
        ...


class PluginSource(Protocol):
    """Where a scheduler gets the ordered plugins that its settings name."""

    def filters(self, names: Sequence[str]) -> Filters:
        """Load filters in that order; raises PluginError with what is installed."""
        ...

    def weights(self, multipliers: dict[str, float]) -> Weights:
        """Load the named weights with their multipliers."""
        ...


@dataclass(frozen=True, kw_only=True)
class PluginContext:
    """What a plugin is given when it is made.

    ``state_dir`` outlives a reboot and ``run_dir`` does not; both exist, mode 0700, and belong to
    this plugin alone. ``credentials`` is there for plugins of the control side that authenticate.
    ``node_address`` is where other nodes reach this one; empty on a lone node.
    """

    node_name: str
    state_dir: Path
    run_dir: Path
    plugins: PluginSource
    credentials: Credentials | None = None
    node_address: str = ""


class SchedulerSpec(Protocol):
    """Group ``appliance.scheduler``: a driver, one per cluster, control side."""

    @hookspec(firstresult=True)
    def scheduler_rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        """Say which nodes could hold an instance, best first.

        A pure function of its arguments (``request.seed`` decides what is random): the caller
        claims the first node of the answer that still has room, so a stale view costs a retry and
        never an overcommit. It must respect ``pinned_node_id`` and ``excluded_node_ids``.
        At most 20 ms for 10,000 nodes.

        :param nodes: every node with the compute role, up or not, in no order.
        :returns: a ranking; one without nodes, with the refusals that say why, when none fits.
        """


class FilterSpec(Protocol):
    """Group ``appliance.filter``: ordered by name in the settings of the ``filter`` scheduler."""

    @hookspec(firstresult=True)
    def filter_refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        """Say for each node why it cannot hold the instance, all nodes in one call.

        A pure function. The reason is a short stable phrase that completes "the node …" and is
        counted, so it holds no numbers of a single node (``has too little free memory``).
        At most 2 ms for 10,000 nodes.

        :returns: one entry per node, in order; ``None`` lets the node through.
        """


class WeightSpec(Protocol):
    """Group ``appliance.weight``: named with its multiplier in the settings of ``filter``."""

    @hookspec(firstresult=True)
    def weight_score(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[float]:
        """Score nodes that passed all filters, higher is better, all nodes in one call.

        A pure function. The caller scales the scores of one call to 0…1 before it multiplies.

        :returns: one finite number per node, in order.
        """


class NetworkDriverSpec(Protocol):
    """Group ``appliance.network``: a driver per network type, node side, needs CAP_NET_ADMIN."""

    @hookspec(firstresult=True)
    def network_prepare(self, network: NetworkSpec) -> None:
        """Make what the network needs on this node before a port can come.

        For example a bridge with the gateway's address, DHCP and DNS, and the way out. Called
        before the first port of the network and again after each start of the node.
        """

    @hookspec(firstresult=True)
    def network_attach(self, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        """Make the port's tap, link down, in the network, and let DHCP know its addresses.

        Not one frame may pass before :meth:`network_raise`. The tap is called
        ``appliance.model.tap_name(port.port_id)``.
        """

    @hookspec(firstresult=True)
    def network_raise(self, port_id: str) -> None:
        """Set the link of an attached port up; called once its rules are in force.

        :raises NotFound: no such tap; nothing was changed.
        """

    @hookspec(firstresult=True)
    def network_detach(self, port_id: str) -> None:
        """Remove tap and lease of a port. No error when there is nothing to remove."""

    @hookspec(firstresult=True)
    def network_release(self, network_id: str) -> None:
        """Remove all that :meth:`network_prepare` made. No error when there is nothing to remove.

        :raises Conflict: the network still has ports here; nothing was changed.
        """

    @hookspec(firstresult=True)
    def network_reach(self, network: NetworkSpec, reach: NetworkReach) -> None:
        """Optional: learn which ports of a prepared network are on other nodes, and where.

        Frames for those ports, and for no others, leave for their nodes from then on; frames
        that come from another node pass only when they bear the MAC of a port of that node. A
        difference costs what changed, not what there is; the whole puts right what is there, and
        interrupts nothing that stays. A port of this node is never among them, and one that is
        made here later takes its MAC over.

        :raises Conflict: the network is not prepared on this node; nothing was changed.
        :raises Stale: a difference, and this object was not told the whole before; nothing was
            changed, and the caller tells the whole.
        """

    @hookspec(firstresult=True)
    def network_list(self) -> NetworkState:
        """Return what this plugin has on this node, read from the kernel and its processes."""


class FirewallSpec(Protocol):
    """Group ``appliance.firewall``: a driver, one per node, node side, needs CAP_NET_ADMIN.

    What the rules must say is defined by ``appliance.firewall.verdict``. Everything the plugin
    makes bears our prefix, and no rule of others is touched. A call that raises leaves the last
    good rules in force, never fewer; each call is one transaction.
    """

    @hookspec(firstresult=True)
    def firewall_guard(self) -> None:
        """Make sure that a tap of ours without rules carries nothing, now and when we are dead.

        Called first of all at each start; must keep the rules that are in force.
        """

    @hookspec(firstresult=True)
    def firewall_sync(self, policy: NetworkPolicy) -> None:
        """Put a network's whole policy in force in place of what there is, and its revision.

        Flows that the new policy no longer allows are cut.
        """

    @hookspec(firstresult=True)
    def firewall_update(self, delta: PolicyDelta) -> None:
        """Put the difference between two revisions in force; costs what changed, not what is.

        Flows that are no longer allowed are cut.

        :raises Stale: the rules in force are not at ``delta.from_revision``; nothing was changed,
            and the caller answers with :meth:`firewall_sync`.
        """

    @hookspec(firstresult=True)
    def firewall_forget(self, network_id: str) -> None:
        """Remove a network that has no port here. No error when there is nothing to remove."""

    @hookspec(firstresult=True)
    def firewall_state(self) -> FirewallState:
        """Return what is in force, read back from the kernel."""

    @hookspec(firstresult=True)
    def firewall_withdraw(self) -> None:
        """Remove everything, the guard included; only after the last tap of ours is gone."""


class InjectionSpec(Protocol):
    """Group ``appliance.injection``: a driver per instance from the node's list, node side."""

    @hookspec(firstresult=True)
    def injection_inject(self, request: InjectionRequest) -> InjectionResult:
        """Give the instance its key, network configuration and user data before it starts.

        Writes only inside ``request.directory`` and the root disk. At most 120 s without progress.
        """

    @hookspec(firstresult=True)
    def injection_remove(self, directory: str) -> None:
        """Remove what :meth:`injection_inject` put beside the root disk; none there is no error."""


class ComputeSpec(Protocol):
    """Group ``appliance.compute``: a driver, one per node, node side; the hypervisor."""

    @hookspec(firstresult=True)
    def compute_define(self, definition: InstanceDefinition) -> None:
        """Make the instance known to the hypervisor, replacing an older definition; not started.

        :raises Conflict: the instance is running with another definition; nothing was changed.
        """

    @hookspec(firstresult=True)
    def compute_start(self, instance_id: str) -> None:
        """Start a defined instance. No error when it runs already. At most 60 s."""

    @hookspec(firstresult=True)
    def compute_shut_down(self, instance_id: str) -> None:
        """Ask the instance to shut down (ACPI) and return at once; it may ignore it."""

    @hookspec(firstresult=True)
    def compute_power_off(self, instance_id: str) -> None:
        """Take the power away and return when it is off. No error when it is off or unknown."""

    @hookspec(firstresult=True)
    def compute_reboot(self, instance_id: str, is_forced: bool) -> None:
        """Ask the instance to reboot (ACPI), or reset it when forced.

        :raises Conflict: it is not running; nothing was changed.
        """

    @hookspec(firstresult=True)
    def compute_remove(self, instance_id: str) -> None:
        """Power off and forget the instance; its files stay. No error when it is unknown."""

    @hookspec(firstresult=True)
    def compute_list(self) -> Sequence[InstanceFact]:
        """Return all instances of ours that the hypervisor knows, never those of others."""

    @hookspec(firstresult=True)
    def compute_events(self, wait_s: float) -> Sequence[PowerEvent]:
        """Wait up to ``wait_s`` seconds for changes of power state and return them.

        Events may be lost (the hypervisor's daemon restarts): :meth:`compute_list` is the truth.
        """

    @hookspec(firstresult=True)
    def compute_capacity(self) -> NodeCapacity:
        """Return what this machine has for instances and how loaded it is. At most 1 s."""

    @hookspec(firstresult=True)
    def compute_console(self, instance_id: str, directory: str, tail_bytes: int) -> ConsoleOutput:
        """Return the end of what the instance printed on its serial port.

        Answers after a stop, too; an empty text when it has printed nothing.
        """


class AuthSpec(Protocol):
    """Group ``appliance.auth``: asked in the order of the settings, control side."""

    @hookspec(firstresult=True)
    def auth_authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        """Say who sent the request.

        :returns: the identity; ``None`` when the request bears no credentials of this plugin's
            kind, then the next plugin is asked, and after the last the request is refused.
        :raises Denied: the credentials are of this plugin's kind and are bad; nobody else is asked.
        """


class ObserverSpec(Protocol):
    """Group ``appliance.observer``: all that are named are called, each alone.

    An observer that raises is logged and does not silence the others.
    """

    @hookspec
    def observer_instance_event(self, entry: TimelineEntry) -> None:
        """Learn of a hop or step of an instance after it was recorded. At most 100 ms."""

    @hookspec
    def observer_node_check(self) -> Sequence[Finding]:
        """Say what is wrong with this node; the findings appear in ``anynode verify``."""


class RoleSpec(Protocol):
    """Group ``appliance.role``: named per node."""

    @hookspec(firstresult=True)
    def role_create(self, parts: NodeParts) -> Role:
        """Make the role's handlers, periodic work and services from the parts of a node."""


GROUPS: dict[str, type] = {
    "appliance.scheduler": SchedulerSpec,
    "appliance.filter": FilterSpec,
    "appliance.weight": WeightSpec,
    "appliance.network": NetworkDriverSpec,
    "appliance.firewall": FirewallSpec,
    "appliance.injection": InjectionSpec,
    "appliance.compute": ComputeSpec,
    "appliance.auth": AuthSpec,
    "appliance.observer": ObserverSpec,
    "appliance.role": RoleSpec,
}
"""Every entry-point group with the contract that its plugins fill."""

OPTIONAL_HOOKS = frozenset({"network_reach"})
"""Hooks of drivers that a plugin may leave out."""
