"""Typed calls of hooks: what pluggy would let pass silently is an error here.

A driver that nobody fills, that two fill, or whose answer has another type never becomes a
silent ``None``; a listener that raises does not silence the others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pluggy

from appliance.errors import PluginError
from appliance.hookspecs import GROUPS
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
from appliance.plugins import relay

log = logging.getLogger(__name__)
A = TypeVar("A")


def hook_names(group: str) -> tuple[str, ...]:
    """Return the names of the hooks of a group, in the order of their contract."""
    spec = GROUPS[group]
    return tuple(name for name, item in vars(spec).items() if hasattr(item, "appliance_spec"))


class Driver:
    """One plugin that fills all hooks of its group.

    :raises PluginError: a hook is not filled, or is filled twice.
    """

    group = ""

    def __init__(self, name: str, plugin: object) -> None:
        self.name = name
        self._manager = relay(self.group, {name: plugin})
        for hook in hook_names(self.group):
            filled = len(getattr(self._manager.hook, hook).get_hookimpls())
            if filled != 1:
                raise PluginError(
                    f"Plugin {name!r} of {self.group} fills {hook} {filled} times instead of once."
                )

    def call(self, hook: str, answer: type[A], **arguments: Any) -> A:
        """Call a hook and return its answer.

        :raises PluginError: the answer is not of the type that the contract names.
        """
        given = getattr(self._manager.hook, hook)(**arguments)
        if not isinstance(given, answer):
            raise PluginError(
                f"{hook} of plugin {self.name!r} answered {type(given).__name__}, "
                f"not {answer.__name__}."
            )
        return given

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call a hook that answers nothing.

        :raises PluginError: it answered something.
        """
        given = getattr(self._manager.hook, hook)(**arguments)
        if given is not None:
            raise PluginError(f"{hook} of plugin {self.name!r} answered, but must not.")

    def call_list(self, hook: str, item: type[A], **arguments: Any) -> tuple[A, ...]:
        """Call a hook that answers a sequence and return its items.

        :raises PluginError: it is no sequence, or an item has another type.
        """
        given = getattr(self._manager.hook, hook)(**arguments)
        if not isinstance(given, (list, tuple)):
            raise PluginError(f"{hook} of plugin {self.name!r} answered no {item.__name__} list.")
        for one in given:
            if not isinstance(one, item):
                raise PluginError(
                    f"{hook} of plugin {self.name!r} answered a {type(one).__name__} "
                    f"among {item.__name__}s."
                )
        return tuple(given)


class Scheduler(Driver):
    """The cluster's scheduler."""

    group = "appliance.scheduler"

    def rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        """Return the ranking of the nodes for one instance."""
        return self.call("scheduler_rank", Ranking, request=request, nodes=nodes)


class Network(Driver):
    """The driver of one network type."""

    group = "appliance.network"

    def prepare(self, network: NetworkSpec) -> None:
        """Make what the network needs on this node."""
        self.tell("network_prepare", network=network)

    def attach(self, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        """Make a port's tap, link down."""
        return self.call("network_attach", AttachedPort, network=network, port=port)

    def raise_link(self, port_id: str) -> None:
        """Set a port's link up."""
        self.tell("network_raise", port_id=port_id)

    def detach(self, port_id: str) -> None:
        """Remove a port."""
        self.tell("network_detach", port_id=port_id)

    def release(self, network_id: str) -> None:
        """Remove a network from this node."""
        self.tell("network_release", network_id=network_id)

    def list(self) -> NetworkState:
        """Return what is there."""
        return self.call("network_list", NetworkState)


class Firewall(Driver):
    """The node's firewall."""

    group = "appliance.firewall"

    def guard(self) -> None:
        """Make sure that unknown taps carry nothing."""
        self.tell("firewall_guard")

    def sync(self, policy: NetworkPolicy) -> None:
        """Put a whole policy in force."""
        self.tell("firewall_sync", policy=policy)

    def update(self, delta: PolicyDelta) -> None:
        """Put a difference in force."""
        self.tell("firewall_update", delta=delta)

    def forget(self, network_id: str) -> None:
        """Remove a network."""
        self.tell("firewall_forget", network_id=network_id)

    def state(self) -> FirewallState:
        """Return what is in force."""
        return self.call("firewall_state", FirewallState)

    def withdraw(self) -> None:
        """Remove everything."""
        self.tell("firewall_withdraw")


class Injection(Driver):
    """One injection plugin of the node's list."""

    group = "appliance.injection"

    def inject(self, request: InjectionRequest) -> InjectionResult:
        """Give an instance what it needs to know."""
        return self.call("injection_inject", InjectionResult, request=request)

    def remove(self, directory: str) -> None:
        """Remove what was put beside the disk."""
        self.tell("injection_remove", directory=directory)


class Compute(Driver):
    """The node's hypervisor."""

    group = "appliance.compute"

    def define(self, definition: InstanceDefinition) -> None:
        """Make an instance known."""
        self.tell("compute_define", definition=definition)

    def start(self, instance_id: str) -> None:
        """Start a defined instance."""
        self.tell("compute_start", instance_id=instance_id)

    def shut_down(self, instance_id: str) -> None:
        """Ask an instance to shut down."""
        self.tell("compute_shut_down", instance_id=instance_id)

    def power_off(self, instance_id: str) -> None:
        """Take the power away."""
        self.tell("compute_power_off", instance_id=instance_id)

    def reboot(self, instance_id: str, *, is_forced: bool) -> None:
        """Reboot an instance."""
        self.tell("compute_reboot", instance_id=instance_id, is_forced=is_forced)

    def remove(self, instance_id: str) -> None:
        """Power off and forget an instance."""
        self.tell("compute_remove", instance_id=instance_id)

    def list(self) -> tuple[InstanceFact, ...]:
        """Return our instances."""
        return self.call_list("compute_list", InstanceFact)

    def events(self, wait_s: float) -> tuple[PowerEvent, ...]:
        """Wait for changes of power state."""
        return self.call_list("compute_events", PowerEvent, wait_s=wait_s)

    def capacity(self) -> NodeCapacity:
        """Return what the machine has."""
        return self.call("compute_capacity", NodeCapacity)

    def console(self, instance_id: str, directory: str, tail_bytes: int) -> ConsoleOutput:
        """Return the end of the serial output."""
        return self.call(
            "compute_console",
            ConsoleOutput,
            instance_id=instance_id,
            directory=directory,
            tail_bytes=tail_bytes,
        )


class Filters:
    """Filters in the order of the settings."""

    def __init__(self, plugins: Mapping[str, object]) -> None:
        self._drivers = [(name, _FilterDriver(name, plugin)) for name, plugin in plugins.items()]

    def refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[tuple[str, Sequence[str | None]]]:
        """Return per filter its reasons, one per node; a later filter sees only what passed."""
        answers: list[tuple[str, Sequence[str | None]]] = []
        alive = list(range(len(nodes)))
        for name, driver in self._drivers:
            seen = [nodes[index] for index in alive]
            reasons = driver.call("filter_refuse", list, request=request, nodes=seen)
            if len(reasons) != len(seen):
                raise PluginError(f"Filter {name!r} answered {len(reasons)} of {len(seen)} nodes.")
            full: list[str | None] = [None] * len(nodes)
            for index, reason in zip(alive, reasons, strict=True):
                full[index] = reason
            alive = [i for i, reason in zip(alive, reasons, strict=True) if reason is None]
            answers.append((name, full))
        return answers


class _FilterDriver(Driver):
    group = "appliance.filter"


class _WeightDriver(Driver):
    group = "appliance.weight"


class Weights:
    """Weights with their multipliers."""

    def __init__(self, plugins: Mapping[str, tuple[object, float]]) -> None:
        self._drivers = [
            (name, _WeightDriver(name, plugin), multiplier)
            for name, (plugin, multiplier) in plugins.items()
        ]

    def score(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[tuple[str, list[float]]]:
        """Return per weight its scores, scaled to 0…1 and multiplied, one per node."""
        answers = []
        for name, driver, multiplier in self._drivers:
            raw = driver.call("weight_score", list, request=request, nodes=nodes)
            if len(raw) != len(nodes) or not all(map(math.isfinite, raw)):
                raise PluginError(f"Weight {name!r} must answer one finite number per node.")
            low, high = min(raw, default=0.0), max(raw, default=0.0)
            scale = multiplier / (high - low) if high > low else 0.0
            answers.append((name, [(value - low) * scale for value in raw]))
        return answers


class Auth:
    """Authentication plugins in the order of the settings."""

    group = "appliance.auth"

    def __init__(self, plugins: Mapping[str, object]) -> None:
        if not plugins:
            raise PluginError("No authentication plugin is named.", hint="Set api.auth.")
        self._manager = relay(self.group, plugins)
        filled = len(self._manager.hook.auth_authenticate.get_hookimpls())
        if filled != len(plugins):
            raise PluginError("A named authentication plugin does not fill auth_authenticate.")

    def authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        """Return who sent the request; ``None`` when no plugin found credentials of its kind."""
        given = self._manager.hook.auth_authenticate(request=request, now=now)
        if given is not None and not isinstance(given, Identity):
            raise PluginError(f"auth_authenticate answered {type(given).__name__}, not Identity.")
        return given


class Observers:
    """Observers: each is called alone, and one that raises is logged."""

    group = "appliance.observer"

    def __init__(self, plugins: Mapping[str, object]) -> None:
        self._managers = {name: relay(self.group, {name: item}) for name, item in plugins.items()}

    def instance_event(self, entry: TimelineEntry) -> None:
        """Tell all observers of a hop or step."""
        for name, manager in self._managers.items():
            _alone(name, manager, "observer_instance_event", entry=entry)

    def node_check(self) -> list[Finding]:
        """Return what all observers find wrong with this node."""
        findings: list[Finding] = []
        for name, manager in self._managers.items():
            for answer in _alone(name, manager, "observer_node_check"):
                findings.extend(answer)
        return findings


def _alone(name: str, manager: pluggy.PluginManager, hook: str, **arguments: Any) -> list[Any]:
    try:
        return list(getattr(manager.hook, hook)(**arguments))
    except Exception:
        log.exception("observer %s failed in %s; the others go on", name, hook)
        return []
