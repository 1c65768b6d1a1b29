"""The ``member`` role: who else is in the cluster, and what this node shall be in it.

It runs on every node of a cluster, and no setting names it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from appliance.cluster import image_tickets, peer_service, services
from appliance.cluster.entitlement import Entitlement
from appliance.cluster.image_door import ImageDoor
from appliance.cluster.inquiry import inquire
from appliance.cluster.membership import MEMBER_ROLE, Membership, Removal
from appliance.cluster.peer_messages import FACTS
from appliance.errors import AnynodeError, ConfigError
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.images.store import ImageStore
from appliance.messages import GetMembers, Heartbeat, Members, MembersChanged, node_topic
from appliance.model import NodeCapacity
from appliance.node import HEARTBEAT, WORKING_ROLE, NodeParts
from appliance.role import Periodic, Role

log = logging.getLogger(__name__)
api_versions = frozenset({1})

ASK_EVERY_S = 5.0
"""Seconds between two questions for the list of members, which hints hurry."""

LOOK_EVERY_S = 0.5
"""Seconds between two looks at it where a controller is: it gives the hints."""

NOTICE_EVERY_S = 0.1
"""Seconds after which a hint is followed at most."""

FOLLOW_EVERY_S = 2.0
"""Seconds after which what did not start is tried again."""

INQUIRE_AFTER_S = 10.0
"""Seconds without an answer over the bus after which the doors of control nodes are asked."""

INQUIRE_EVERY_S = 15.0

_DEADLINE_S = 5.0


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return MemberRole()


class MemberRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Keep the list of members, and follow what the cluster wants of this node.

        :raises ConfigError: the node is in no cluster.
        """
        if parts.cluster is None:
            raise ConfigError(
                "This node is in no cluster.", hint="`anynode join` lets it join one."
            )
        one = ClusterMember(parts, parts.cluster)
        return Role(
            name=MEMBER_ROLE,
            topic=node_topic(MEMBER_ROLE, parts.node_id),
            group_topic=MEMBER_ROLE,
            hears={MembersChanged: lambda message: one.heard(message)},
            periodic=(
                Periodic(name="members", every_s=NOTICE_EVERY_S, run=one.look),
                Periodic(
                    name=HEARTBEAT,
                    every_s=parts.config.compute.heartbeat_every_s,
                    run=one.heartbeat,
                ),
                Periodic(name="services", every_s=services.LOOK_EVERY_S, run=one.keep_services),
            ),
            start=one.start,
            stop=one.stop,
        )


class ClusterMember:
    """One node of a cluster as it looks after itself."""

    def __init__(self, parts: NodeParts, cluster: Membership) -> None:
        self._parts = parts
        self._cluster = cluster
        self._server = peer_service.make_server(cluster, parts.config)
        self._entitlement = Entitlement(cluster, parts.state_dir, parts.world.clock)
        self._news = threading.Event()
        self._asked_at = self._followed_at = self._inquired_at = float("-inf")
        self._answered_at = parts.world.clock.monotonic()
        self._followed: Members | None = None
        self._problem = ""

    def start(self) -> None:
        """Start the cluster's own store and broker, if they are here, and serve the others.

        :raises ConfigError: the address cannot be listened on, or the certificate is unusable.
        """
        self._cluster.server_context()
        self._open_images()
        self._cluster.doors[FACTS] = self._tell_facts
        self._server.open()
        try:
            services.look_after(self._parts.state_dir)
        except AnynodeError as error:
            log.error("a service of the cluster does not run: %s", error)

    def _open_images(self) -> None:
        """Let others fetch the images that this node holds, if it can hold any."""
        settings, cluster = self._parts.config, self._cluster
        try:
            store = ImageStore(settings.images_dir, group=settings.images.group)
        except ConfigError as error:
            log.warning("no images are given to other nodes: %s", error)
            return
        cluster.doors[image_tickets.PATH] = ImageDoor(
            store,
            cluster.signer,
            self._parts.world.clock,
            lambda environ: str(environ[peer_service.MEMBER_ID]),
        )

    def _tell_facts(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        # It brings much along that nothing else needs here.
        from appliance.verify import door

        return door.answer(self._parts.config, environ, start)

    def stop(self) -> None:
        """Serve them no more."""
        self._cluster.doors.pop(FACTS, None)
        self._cluster.doors.pop(image_tickets.PATH, None)
        self._server.close()

    def keep_services(self) -> None:
        """Start the cluster's own store and broker again, where they are here and do not run.

        :raises AnynodeError: one cannot start; it is tried again.
        """
        for name in services.look_after(self._parts.state_dir, _DEADLINE_S):
            log.warning("%s did not run and was started again", name)

    def heard(self, message: MembersChanged) -> None:
        """Ask at the next look, if that is news."""
        if message.revision != self._cluster.members.current.revision:
            self._news.set()

    def look(self) -> None:
        """Ask for the list when it is time or there is news, and follow what it says.

        A cluster that does not answer changes nothing: the last list goes on to count.
        """
        now = self._parts.world.clock.monotonic()
        every_s = LOOK_EVERY_S if "controller" in self._parts.vital().roles else ASK_EVERY_S
        if self._news.is_set() or now - self._asked_at >= every_s:
            self._news.clear()
            self._asked_at = now
            try:
                self._ask()
                self._answered_at = self._parts.world.clock.monotonic()
            except AnynodeError as error:
                log.debug("could not ask for the members: %s", error)
                self._inquire()
        is_news = self._cluster.members.current is not self._followed
        if is_news or now - self._followed_at >= FOLLOW_EVERY_S:
            self._followed_at = now
            self._follow()

    def _ask(self) -> None:
        question = GetMembers(
            node_id=self._parts.node_id, known_revision=self._cluster.members.current.revision
        )
        told = self._parts.bus.call("controller", question, Members, _DEADLINE_S)
        if self._cluster.members.take(told):
            log.info("revision %d of the members: %d", told.revision, len(told.members))

    def _inquire(self) -> None:
        """Ask at the doors of control nodes once the bus has been dead for some time."""
        now = self._parts.world.clock.monotonic()
        # A broker may well carry what nobody hears: the cluster may have another one by now.
        is_dead = now - self._answered_at > INQUIRE_AFTER_S
        if not is_dead or not self._cluster.is_told or now - self._inquired_at < INQUIRE_EVERY_S:
            return
        self._inquired_at = now
        try:
            inquire(self._cluster, self._parts.world.clock)
        except AnynodeError as error:
            log.debug("no control node says how the cluster is: %s", error)
            return
        self._follow()

    def _follow(self) -> None:
        """Bring this node to what the list says of it."""
        current = self._cluster.members.current
        own = self._cluster.members.get(self._parts.node_id)
        if own is None:
            if not current.members:
                return
            if not self._cluster.removal:
                self._cluster.note_removal(Removal(learnt_at=self._parts.world.clock.now()))
        elif self._cluster.is_told and not self._cluster.removal:
            self._get_entitled()
        self._parts.follow(self._cluster.settings_of(self._parts.config, own))
        self._followed = current

    def _get_entitled(self) -> None:
        """Get what this node's roles need; without it those that it has go on."""
        try:
            self._entitlement.follow()
            self._problem = ""
        except AnynodeError as error:
            if error.message != self._problem:
                log.warning("what this node is entitled to is asked for again: %s", error)
            self._problem = error.message

    def heartbeat(self) -> None:
        """Tell the controller that this node is alive, unless its compute role does."""
        vital = self._parts.vital()
        if WORKING_ROLE in vital.roles:
            return
        self._parts.bus.announce(
            "controller",
            Heartbeat(
                node_id=self._parts.node_id,
                boot_id=self._parts.boot_id,
                capacity=NodeCapacity(
                    vcpus=0, memory_mib=0, disk_gib=0, load_1m=round(os.getloadavg()[0], 2)
                ),
                offered_vcpus=0,
                offered_memory_mib=0,
                offered_disk_gib=0,
                release=vital.release,
                roles=vital.roles,
                problems=vital.problems,
                buses=vital.buses,
            ),
        )
