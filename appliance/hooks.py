"""Typed calls of hooks: what pluggy would let pass silently is an error here.

A driver that nobody fills, that two fill, or whose answer has another type never becomes a
silent ``None``; a listener that raises does not silence the others. What a plugin raises that is no
``AnynodeError`` becomes a ``PluginError`` that names plugin and hook.
"""

from __future__ import annotations

import logging
import math
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from appliance.errors import AnynodeError, ConfigError, PluginError
from appliance.hookspecs import GROUPS, OPTIONAL_HOOKS
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
    tap_name,
)
from appliance.plugins import relay
from appliance.role import Role
from appliance.scheduler.ranking import MAX_RECORD_BYTES, Filter

if TYPE_CHECKING:
    from appliance.node import NodeParts

log = logging.getLogger(__name__)
A = TypeVar("A")


def hook_names(group: str) -> tuple[str, ...]:
    """Return the names of the hooks of a group, in the order of their contract."""
    spec = GROUPS[group]
    return tuple(name for name, item in vars(spec).items() if hasattr(item, "appliance_spec"))


class NamedPlugin:
    """One plugin of a group, with errors that name it, the hook, and what it was asked with.

    :raises PluginError: it breaks the contract of its group.
    """

    group = ""

    def __init__(self, name: str, plugin: object) -> None:
        self.name = name
        self._manager = relay(self.group, name, plugin)

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.group}"

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a hook and return its answer unchecked.

        :raises AnynodeError: as the plugin raised it.
        :raises PluginError: the plugin raised anything else.
        """
        try:
            return getattr(self._manager.hook, hook)(**arguments)
        except AnynodeError:
            raise
        except Exception as error:
            raise PluginError(
                f"{hook} of {self} failed{_asked_with(arguments)}.",
                hint="This is a bug of the plugin: tell its authors.",
            ) from error

    def refuse_answer(self, hook: str, problem: str, arguments: Mapping[str, Any]) -> NoReturn:
        """Raise the error that says what is wrong with an answer."""
        raise PluginError(f"{hook} of {self} {problem}{_asked_with(arguments)}.")


_KEYS = ("instance_id", "port_id", "network_id", "network", "method")


def _asked_with(arguments: Mapping[str, Any]) -> str:
    """Return keys and counts of what a hook was asked with; whole values may hold secrets."""
    parts = []
    for name, value in arguments.items():
        if isinstance(value, (str, int, float)):
            parts.append(f"{name} {value}")
        elif isinstance(value, Sequence):
            parts.append(f"{len(value)} {name}")
        else:
            found = next((getattr(value, key) for key in _KEYS if hasattr(value, key)), None)
            found = getattr(found, "network_id", found)
            if found is not None:
                parts.append(f"{name} {found}")
    return f", asked with {', '.join(parts)}" if parts else ""


class Driver(NamedPlugin):
    """One plugin that fills all hooks of its group.

    :raises PluginError: a hook is not filled, or is filled twice.
    """

    def __init__(self, name: str, plugin: object) -> None:
        super().__init__(name, plugin)
        for hook in hook_names(self.group):
            filled = self.filled(hook)
            if filled != 1 and not (filled == 0 and hook in OPTIONAL_HOOKS):
                raise PluginError(f"{self} fills {hook} {filled} times instead of once.")

    def filled(self, hook: str) -> int:
        """Return how often the plugin fills a hook."""
        return len(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, answer: type[A], **arguments: Any) -> A:
        """Call a hook and return its answer.

        :raises PluginError: the answer is not of the type that the contract names.
        """
        given = self.ask(hook, **arguments)
        if not isinstance(given, answer):
            problem = f"answered {type(given).__name__}, not {answer.__name__}"
            self.refuse_answer(hook, problem, arguments)
        return given

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call a hook that answers nothing.

        :raises PluginError: it answered something.
        """
        given = self.ask(hook, **arguments)
        if given is not None:
            problem = f"answered {type(given).__name__}, but must answer nothing"
            self.refuse_answer(hook, problem, arguments)

    def call_list(self, hook: str, item: type[A], **arguments: Any) -> tuple[A, ...]:
        """Call a hook that answers a sequence and return its items.

        :raises PluginError: it is no list or tuple, or an item has another type.
        """
        given = self.ask(hook, **arguments)
        if not isinstance(given, (list, tuple)):
            problem = f"answered {type(given).__name__}, not a list of {item.__name__}"
            self.refuse_answer(hook, problem, arguments)
        for one in given:
            if not isinstance(one, item):
                problem = f"answered a {type(one).__name__} among {item.__name__}s"
                self.refuse_answer(hook, problem, arguments)
        return tuple(given)


class Scheduler(Driver):
    """The cluster's scheduler."""

    group = "appliance.scheduler"

    def rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        """Return the ranking of the nodes for one instance.

        :raises PluginError: the answer breaks the contract, for example by naming a node that the
            request excludes.
        """
        asked = {"request": request, "nodes": nodes}
        ranking = self.call("scheduler_rank", Ranking, **asked)
        problem = _ranking_problem(ranking, request, nodes)
        if problem:
            self.refuse_answer("scheduler_rank", problem, asked)
        return ranking


def _ranking_problem(
    ranking: Ranking, request: PlacementRequest, nodes: Sequence[NodeView]
) -> str | None:
    named = set(ranking.node_ids)
    if len(named) != len(ranking.node_ids):
        return "named a node twice"
    if not named.issubset({node.node_id for node in nodes}):
        return "named a node that it was not asked about"
    if not named.isdisjoint(request.excluded_node_ids):
        return "named a node that the request excludes"
    if request.pinned_node_id is not None and named - {request.pinned_node_id}:
        return "named another node than the one that the request is pinned to"
    size = len(msgspec.json.encode(ranking))
    if size > MAX_RECORD_BYTES:
        return f"answered a record of {size} bytes, more than {MAX_RECORD_BYTES}"
    return None


class Network(Driver):
    """The driver of one network type."""

    group = "appliance.network"

    def prepare(self, network: NetworkSpec) -> None:
        """Make what the network needs on this node."""
        self.tell("network_prepare", network=network)

    def attach(self, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        """Make a port's tap, link down.

        :raises PluginError: the tap has another name than the firewall will guard; it is there.
        """
        asked = {"network": network, "port": port}
        attached = self.call("network_attach", AttachedPort, **asked)
        if attached.tap != tap_name(port.port_id) or attached.port_id != port.port_id:
            problem = f"made {attached.tap!r} for {attached.port_id}"
            self.refuse_answer("network_attach", problem, asked)
        return attached

    def raise_link(self, port_id: str) -> None:
        """Set a port's link up."""
        self.tell("network_raise", port_id=port_id)

    def detach(self, port_id: str) -> None:
        """Remove a port."""
        self.tell("network_detach", port_id=port_id)

    def release(self, network_id: str) -> None:
        """Remove a network from this node."""
        self.tell("network_release", network_id=network_id)

    @property
    def spans_nodes(self) -> bool:
        """Whether networks of this type are the same on every node, so that ports need reach."""
        return self.filled("network_reach") == 1

    def reach(self, network: NetworkSpec, reach: NetworkReach) -> None:
        """Tell which ports are on other nodes, and where; only where networks span nodes."""
        self.tell("network_reach", network=network, reach=reach)

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
        """Give an instance what it needs to know.

        :raises PluginError: a disk of the answer lies outside the instance's directory.
        """
        result = self.call("injection_inject", InjectionResult, request=request)
        for disk in result.disks:
            if not Path(os.path.normpath(disk.path)).is_relative_to(request.directory):
                problem = f"answered a disk outside {request.directory}: {disk.path}"
                self.refuse_answer("injection_inject", problem, {"request": request})
        return result

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


class RoleMaker(Driver):
    """The plugin that makes one role."""

    group = "appliance.role"

    def create(self, parts: NodeParts) -> Role:
        """Make the role from the parts of a node."""
        return self.call("role_create", Role, parts=parts)


class _FilterDriver(Driver):
    group = "appliance.filter"

    def refuse(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Sequence[str | None]:
        asked = {"request": request, "nodes": nodes}
        reasons = self.call("filter_refuse", list, **asked)
        problem = ""
        if len(reasons) != len(nodes):
            problem = f"answered {len(reasons)} times for {len(nodes)} nodes"
        elif not set(map(type, reasons)) <= {str, type(None)} or "" in reasons:
            problem = "answered something else than None or a reason"
        if problem:
            self.refuse_answer("filter_refuse", problem, asked)
        return reasons


class Filters:
    """Filters in the order of the settings.

    :raises PluginError: one breaks the contract of its group.
    """

    def __init__(self, plugins: Mapping[str, object]) -> None:
        self._drivers = [_FilterDriver(name, plugin) for name, plugin in plugins.items()]

    def named(self) -> Sequence[tuple[str, Filter]]:
        """Return the filters, as ``appliance.scheduler.ranking.sift`` takes them.

        Each raises PluginError when it does not answer once per node.
        """
        return [(driver.name, driver.refuse) for driver in self._drivers]


class _WeightDriver(Driver):
    group = "appliance.weight"

    def score(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[float]:
        asked = {"request": request, "nodes": nodes}
        scores = self.call("weight_score", list, **asked)
        problem = ""
        if len(scores) != len(nodes):
            problem = f"answered {len(scores)} times for {len(nodes)} nodes"
        elif not set(map(type, scores)) <= {int, float} or not all(map(math.isfinite, scores)):
            problem = "answered something else than a finite number"
        if problem:
            self.refuse_answer("weight_score", problem, asked)
        return scores


class Weights:
    """Weights with their multipliers.

    :raises PluginError: one breaks the contract of its group.
    :raises ConfigError: a multiplier is no finite number.
    """

    def __init__(self, plugins: Mapping[str, tuple[object, float]]) -> None:
        self._drivers = []
        for name, (plugin, multiplier) in plugins.items():
            if not math.isfinite(multiplier):
                raise ConfigError(f"The multiplier of weight {name!r} is {multiplier}.")
            self._drivers.append((_WeightDriver(name, plugin), multiplier))

    def score(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[tuple[str, list[float]]]:
        """Return per weight its scores, scaled to 0…1 and multiplied, one per node."""
        answers = []
        for driver, multiplier in self._drivers:
            raw = driver.score(request, nodes)
            low, high = min(raw, default=0.0), max(raw, default=0.0)
            scale = multiplier / (high - low) if high > low else 0.0
            answers.append((driver.name, [(value - low) * scale for value in raw]))
        return answers


class _AuthDriver(Driver):
    group = "appliance.auth"


class Auth:
    """Authentication plugins in the order of the settings.

    :raises PluginError: none is named, or one breaks the contract of its group.
    """

    def __init__(self, plugins: Mapping[str, object]) -> None:
        if not plugins:
            raise PluginError("No authentication plugin is named.", hint="Set api.auth.")
        # Each in a relay of its own: in a common one a plugin could mark itself to be asked first.
        self._drivers = [_AuthDriver(name, plugin) for name, plugin in plugins.items()]

    def authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        """Return who sent the request; ``None`` when no plugin found credentials of its kind.

        :raises Denied: a plugin found credentials of its kind, and they are bad.
        """
        for driver in self._drivers:
            given = driver.ask("auth_authenticate", request=request, now=now)
            if isinstance(given, Identity):
                return given
            if given is not None:
                problem = f"answered {type(given).__name__}, not Identity"
                driver.refuse_answer("auth_authenticate", problem, {"request": request})
        return None


class _Observer(NamedPlugin):
    group = "appliance.observer"


class Observers:
    """Observers: each is called alone, and one that raises or answers nonsense is logged.

    :raises PluginError: one breaks the contract of its group.
    """

    def __init__(self, plugins: Mapping[str, object]) -> None:
        self._observers = [_Observer(name, plugin) for name, plugin in plugins.items()]

    def instance_event(self, entry: TimelineEntry) -> None:
        """Tell all observers of a hop or step."""
        for observer in self._observers:
            _alone(observer, "observer_instance_event", entry=entry)

    def node_check(self) -> list[Finding]:
        """Return what all observers find wrong with this node."""
        findings: list[Finding] = []
        for observer in self._observers:
            for answer in _alone(observer, "observer_node_check"):
                if isinstance(answer, (list, tuple)) and all(
                    isinstance(one, Finding) for one in answer
                ):
                    findings.extend(answer)
                else:
                    log.error("observer_node_check of %s answered no list of Finding", observer)
        return findings


def _alone(observer: _Observer, hook: str, **arguments: Any) -> list[Any]:
    try:
        return list(observer.ask(hook, **arguments))
    except Exception:
        log.exception("%s failed in %s; the other observers go on", observer, hook)
        return []
