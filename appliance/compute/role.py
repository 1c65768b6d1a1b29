"""The compute role: takes orders for its node's instances and tells the controller how they are."""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec

from appliance.cluster.image_peers import sources_of
from appliance.compute.attic import clear
from appliance.compute.launch import images_of
from appliance.compute.offer import offered
from appliance.compute.record import Held
from appliance.compute.subject import Drivers
from appliance.compute.worker import Worker
from appliance.errors import AnynodeError, LimitExceeded, NotFound, Stale
from appliance.hooks import Compute, Injection
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.images.cache import ImageCache
from appliance.images.store import ImageStore
from appliance.journal import Journal
from appliance.messages import (
    INSTANCE_INITIATED_SHUTDOWN,
    ConsoleRead,
    Done,
    FetchImage,
    GuardPort,
    Heartbeat,
    Holding,
    Holdings,
    Inventory,
    KeepPorts,
    Order,
    ReadConsole,
    ReportConfirmed,
    node_topic,
)
from appliance.model import (
    SHUT_ITSELF_DOWN,
    InstanceFact,
    PowerEvent,
    PowerState,
    Reason,
)
from appliance.node import HEARTBEAT, NodeParts
from appliance.role import Periodic, Role

log = logging.getLogger(__name__)
api_versions = frozenset({1})

EVENT_WAIT_S = 1.0
TOMBSTONE_S = 7 * 86400.0


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return ComputeRole()


class ComputeRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Load the hypervisor and the injections, and take orders."""
        compute = ComputeNode(parts)
        settings = parts.config.compute
        return Role(
            name="compute",
            topic=node_topic("compute", parts.node_id),
            casts={Order: compute.worker.order, ReportConfirmed: compute.worker.confirmed},
            calls={ReadConsole: compute.read_console},
            hears={FetchImage: compute.fetch_image},
            periodic=(
                Periodic(name=HEARTBEAT, every_s=settings.heartbeat_every_s, run=compute.heartbeat),
                Periodic(
                    name="inventory", every_s=settings.inventory_every_s, run=compute.inventory
                ),
                Periodic(name="retry", every_s=settings.retry_s, run=compute.retry),
                # It waits for the hypervisor itself.
                Periodic(name="power-events", every_s=0.0, run=compute.watch),
            ),
            start=compute.start,
            stop=compute.stop,
        )


class ComputeNode:
    """The instances of one node, and what it tells of them."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        settings = parts.config.compute
        self._driver = Compute(settings.driver, parts.plugin(Compute.group, settings.driver))
        instances_dir = parts.state_dir / "instances"
        instances_dir.mkdir(mode=0o711, exist_ok=True)
        instances_dir.chmod(0o711)
        self._journal = Journal(parts.state_dir / "compute.sqlite", parts.world.crash)
        self._drivers = Drivers(
            parts=parts,
            compute=self._driver,
            injections={
                name: Injection(name, parts.plugin(Injection.group, name))
                for name in settings.injection
            },
            images=_make_cache(parts),
            instances_dir=instances_dir,
            images_in_use=self._images_in_use,
        )
        self.worker = Worker(self._drivers, self._journal)
        self._is_confirmed = False

    def start(self) -> None:
        """Find out what is here after a restart of the program, or of the machine."""
        self.heartbeat()
        self._compare_with_hypervisor()
        self._drivers.images.trim(self._images_in_use)
        for held in self.worker.held().values():
            self._parts.work.submit(held.instance_id, lambda held=held: self._check_ports(held))  # type: ignore[misc]
        self.worker.retry()
        self.worker.take_up_reboots()

    def stop(self) -> None:
        """Leave the instances running."""
        self._journal.close()

    def _compare_with_hypervisor(self) -> None:
        """Bring the records to what the hypervisor has.

        After a new boot an instance that is off waits for the controller's word; within the same
        boot it went off by itself.
        """
        # The records first and last: what comes or goes meanwhile is neither off nor a stranger.
        before = self.worker.held()
        facts = {fact.instance_id: fact for fact in self._driver.list()}
        is_new_boot = self._journal_boot_id() != self._parts.boot_id
        for held in before.values():
            fact = facts.get(held.instance_id)
            is_on = fact is not None and fact.power in (PowerState.RUNNING, PowerState.PAUSED)
            if held.state == "stopped" and is_on:
                log.warning("instance %s is stopped, and yet it runs", held.instance_id)
                self.worker.went_on(held.instance_id)
            if held.state != "running" or is_on:
                continue
            if is_new_boot:
                with suppress(Stale):
                    self.worker.save(_off(held), before=held)
            else:
                self.worker.went_off(held.instance_id, _reason(fact))
        for fact in facts.values():
            if fact.instance_id not in {*before, *self.worker.held()}:
                log.warning("instance %s is here but not in the journal", fact.instance_id)
                self.worker.adopt(_found(fact.instance_id, fact.epoch, fact.power))
        self._journal.put("boot", "id", _Boot(boot_id=self._parts.boot_id))

    def _check_ports(self, held: Held) -> None:
        """Make sure that the rules of a running instance are in force and its ports are known."""
        if held.state != "running" or held.binding is None:
            return
        topic = node_topic("datapath", self._parts.node_id)
        deadline_s = self._parts.config.bus.call_deadline_s
        try:
            for port in held.binding.ports:
                question = GuardPort(instance_id=held.instance_id, port_id=port.port_id)
                self._parts.bus.call(topic, question, Done, deadline_s)
        except NotFound as error:
            log.warning("ports of %s are attached again: %s", held.instance_id, error)
            self.worker.rejoin(held)
        except AnynodeError as error:
            log.warning("could not check the ports of %s: %s", held.instance_id, error)

    def _journal_boot_id(self) -> str:
        boot = self._journal.get("boot", "id", _Boot)
        return boot.boot_id if boot else self._parts.boot_id

    def heartbeat(self) -> None:
        """Tell the controller that this node is alive, and what it offers."""
        settings = self._parts.config.compute
        capacity = self._driver.capacity()
        vcpus, memory_mib, disk_gib = offered(capacity, settings)
        vital = self._parts.vital()
        self._parts.bus.announce(
            "controller",
            Heartbeat(
                node_id=self._parts.node_id,
                boot_id=self._parts.boot_id,
                capacity=capacity,
                offered_vcpus=vcpus,
                offered_memory_mib=memory_mib,
                offered_disk_gib=disk_gib,
                release=vital.release,
                roles=vital.roles,
                problems=vital.problems,
                buses=vital.buses,
            ),
        )

    def inventory(self) -> None:
        """Compare with the hypervisor, then with the controller, and follow its orders."""
        self._compare_with_hypervisor()
        self.worker.drop_tombstones(TOMBSTONE_S)
        self._clear_attic()
        question = Inventory(
            node_id=self._parts.node_id,
            boot_id=self._parts.boot_id,
            holdings=tuple(
                Holding(
                    instance_id=held.instance_id,
                    epoch=held.epoch,
                    seq=held.seq,
                    revision=held.revision,
                    state=held.state,
                )
                for held in self.worker.held().values()
            ),
            images=tuple(sorted(self._drivers.images.store.digests())),
        )
        deadline_s = self._parts.config.bus.call_deadline_s
        answer = self._parts.bus.call("controller", question, Holdings, deadline_s)
        self._is_confirmed = True
        for order in answer.orders:
            self._take(order)
        kept = KeepPorts(instance_ids=tuple(self.worker.held()))
        self._parts.bus.call(node_topic("datapath", self._parts.node_id), kept, Done, deadline_s)

    def _take(self, order: Order) -> None:
        """Take an order of the inventory; one that fails comes again and holds up no other."""
        try:
            self.worker.order(order)
        except Exception:
            log.exception("could not take the order for %s; it comes again", order.instance_id)

    def _clear_attic(self) -> None:
        days = self._parts.config.compute.attic_days
        if days:
            clear(self._parts.state_dir, days * 86400.0, self._parts.world.clock.now())

    def retry(self) -> None:
        """Take up what failed, repeat what was not confirmed, ask until the controller answers."""
        if not self._is_confirmed:
            self.inventory()
        self.worker.retry()
        self.worker.repeat_reports()

    def _images_in_use(self) -> set[str]:
        """Return the digests of the images that instances here are based on.

        Of one whose record was lost nobody knows: then all that there are.
        """
        specs = [held.spec for held in self.worker.held().values()]
        if not all(specs):
            return self._drivers.images.store.digests()
        return {image.sha256 for spec in specs if spec for image in images_of(spec)}

    def fetch_image(self, message: FetchImage) -> None:
        """Hold an image that another node holds; what fails is asked for again."""
        cluster, image = self._parts.cluster, message.image
        if cluster is None or self._drivers.images.store.holds(image.sha256):
            return
        sources = sources_of(message.grant, cluster.client_context, self._parts.world.clock)

        def fetch() -> None:
            images = self._drivers.images
            try:
                # A second copy is not worth another one, which would be asked for in turn.
                images.fetch(image, sources, used=images.store.digests)
            except LimitExceeded as error:
                log.info("no second copy of image %s here: %s", image.image_id, error.message)
                return
            log.info("image %s is here now, too", image.image_id)
            self.inventory()

        self._parts.work.submit(f"image {image.sha256}", fetch)

    def read_console(self, question: ReadConsole) -> ConsoleRead:
        """Return the end of an instance's serial output."""
        directory = self._drivers.directory(question.instance_id)
        output = self._driver.console(question.instance_id, str(directory), question.tail_bytes)
        return ConsoleRead(output=output)

    def watch(self) -> None:
        """Wait a moment for instances that go off by themselves, and deal with them."""
        try:
            events = self._driver.events(EVENT_WAIT_S)
        except AnynodeError as error:
            log.warning("no events from the hypervisor: %s", error)
            self._parts.world.clock.sleep(EVENT_WAIT_S)
            return
        for event in events:
            if event.power in (PowerState.SHUT_OFF, PowerState.CRASHED):
                self._went_off(event)

    def _went_off(self, event: PowerEvent) -> None:
        try:
            self.worker.went_off(event.instance_id, _reason(event))
        except AnynodeError as error:
            log.warning("that %s went off waits: %s", event.instance_id, error)


def _make_cache(parts: NodeParts) -> ImageCache:
    """Return the images of this node; what it has of others is bounded."""
    settings = parts.config.images
    store = ImageStore(parts.config.images_dir, group=settings.group)
    return ImageCache(store, limit_bytes=settings.cache_mib << 20 if parts.cluster else None)


def _reason(seen: InstanceFact | PowerEvent | None) -> Reason:
    """Return why an instance is off; ``None`` stands for one that the hypervisor has forgotten."""
    detail = seen.detail if seen else ""
    if seen and seen.power is PowerState.SHUT_OFF and detail == SHUT_ITSELF_DOWN:
        return Reason(
            code=INSTANCE_INITIATED_SHUTDOWN,
            message=f"{INSTANCE_INITIATED_SHUTDOWN}: Instance initiated shutdown",
        )
    what = f": {detail}" if detail else ""
    return Reason(code="Server.InternalError", message=f"The instance stopped unexpectedly{what}.")


def _off(held: Held) -> Held:
    return msgspec.structs.replace(held, state="off")


def _found(instance_id: str, epoch: int, power: PowerState) -> Held:
    """Return the record of an instance that only the hypervisor knows."""
    is_on = power in (PowerState.RUNNING, PowerState.PAUSED)
    return Held(
        instance_id=instance_id,
        epoch=epoch,
        revision=0,
        verb="run",
        state="running" if is_on else "off",
        is_kept=True,
    )


class _Boot(msgspec.Struct, frozen=True, kw_only=True):
    """The boot in which the journal was written."""

    boot_id: str
