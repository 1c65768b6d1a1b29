"""What the steps of a launch, a stop or a removal work on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from appliance.cluster.image_peers import sources_of
from appliance.compute.record import Held
from appliance.errors import PluginError
from appliance.hooks import Compute, Injection
from appliance.images.cache import ImageCache, ImageSource
from appliance.images.store import Progress, ignore_progress
from appliance.messages import Message, node_topic
from appliance.model import Binding, DiskAttachment, ImageGrant, InstanceSpec, PowerState
from appliance.node import NodeParts

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Drivers:
    """The plugins and folders that the compute role works with."""

    parts: NodeParts
    compute: Compute
    injections: dict[str, Injection]
    images: ImageCache
    instances_dir: Path
    images_in_use: Callable[[], Collection[str]] = tuple

    def directory(self, instance_id: str) -> Path:
        """Return the folder of an instance."""
        return self.instances_dir / instance_id

    def runs(self, instance_id: str, epoch: int | None = None) -> bool:
        """Say whether an instance runs, at that epoch if one is given."""
        return any(
            fact.instance_id == instance_id
            and fact.power in (PowerState.RUNNING, PowerState.PAUSED)
            and epoch in (None, fact.epoch)
            for fact in self.compute.list()
        )

    def injection(self, name: str) -> Injection:
        """Return the injection plugin of that name, the node's default when it is empty.

        :raises PluginError: this node does not allow it.
        """
        wanted = name or next(iter(self.injections))
        if wanted not in self.injections:
            raise PluginError(
                f"This node does not allow the injection {wanted!r}, "
                f"only {', '.join(self.injections)}.",
                hint="Add it to compute.injection.",
            )
        return self.injections[wanted]


@dataclass(kw_only=True)
class Subject:
    """One run of steps: the instance, and what the steps find out on the way.

    ``check_wanted`` raises Stale once the order has been overtaken; ``progress`` does, too, and
    lets the controller know that a long step comes on. ``grants`` are by digest.
    """

    drivers: Drivers
    held: Held
    save: Callable[[Held], None]
    check_wanted: Callable[[], None]
    progress: Progress = ignore_progress
    grants: dict[str, ImageGrant] = field(default_factory=dict)
    taps: dict[str, str] = field(default_factory=dict)
    disks: list[DiskAttachment] = field(default_factory=list)
    injected: list[DiskAttachment] = field(default_factory=list)
    boot_files: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> NodeParts:
        """The parts of the node."""
        return self.drivers.parts

    @property
    def instance_id(self) -> str:
        """The instance's id."""
        return self.held.instance_id

    @property
    def directory(self) -> Path:
        """The instance's folder."""
        return self.drivers.directory(self.instance_id)

    @property
    def spec(self) -> InstanceSpec:
        """What to build; there whenever the order was to run."""
        assert self.held.spec is not None
        return self.held.spec

    @property
    def binding(self) -> Binding:
        """Addresses and secrets; there once the binding step is done."""
        assert self.held.binding is not None
        return self.held.binding

    def port_ids(self) -> list[str]:
        """Return the ids of the instance's ports, in order of the device index."""
        known = self.held.spec or self.held.binding
        return [port.port_id for port in known.ports] if known else []

    def image_sources(self, sha256: str) -> list[ImageSource]:
        """Return the nodes from which an image may be had; none on a lone node."""
        cluster, grant = self.parts.cluster, self.grants.get(sha256)
        if cluster is None or grant is None:
            return []
        return sources_of(grant, cluster.client_context, self.parts.world.clock)

    def ask_datapath(self, question: Message, answer: type[M]) -> M:
        """Ask the datapath role of this node."""
        return self.parts.bus.call(
            node_topic("datapath", self.parts.node_id),
            question,
            answer,
            self.parts.config.bus.call_deadline_s,
        )
