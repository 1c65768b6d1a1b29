"""Messages between roles: frozen, versioned, readable JSON; and the registry that decodes them.

Unknown fields are ignored and new fields have defaults, so that neighbouring versions understand
each other. Where there may be many (ports, addresses, block devices) there is a list.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from appliance.errors import InputError
from appliance.model import (
    AttachedPort,
    Binding,
    BlockDeviceSpec,
    ConsoleOutput,
    ImageGrant,
    ImageRef,
    InstanceMetadata,
    InstanceSpec,
    Member,
    NetworkPolicy,
    NetworkReach,
    NetworkSpec,
    NodeCapacity,
    PolicyDelta,
    PortSpec,
    Reason,
    TimelineEntry,
)

INSTANCE_INITIATED_SHUTDOWN = "Client.InstanceInitiatedShutdown"
"""EC2's code of the reason why an instance is off that shut itself down."""


VERSIONS = (1,)
"""The versions of messages that this program understands; senders use what all understand."""


Id = Annotated[str, Meta(max_length=64, pattern=r"^[^\x00]*$")]
"""What names something: of a length that the store has room for."""

Number = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""A number that the store has room for."""

MOST_HELD = 10_000
"""Instances, images or groups that one node holds at most; it can hold no more in one message."""


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages. ``request_id`` is the id of the API call that set it off.

    ``from_hypervisor`` says whether a node that only holds instances may send it; where it names
    a node, that is the sender.
    """

    from_hypervisor: ClassVar[bool] = False

    request_id: Id = ""

    @property
    def lane(self) -> str:
        """The key that keeps messages in sequence; empty where the order does not matter."""
        return ""


class InstanceMessage(Message, frozen=True, kw_only=True):
    """A message about one instance; its messages are handled one after the other."""

    instance_id: Id

    @property
    def lane(self) -> str:
        return self.instance_id


# -- casts ----------------------------------------------------------------------------------------


class Place(Message, frozen=True, kw_only=True):
    """To ``scheduler``: find nodes for instances; at least ``min_count`` of them, or none."""

    reservation_id: str
    instance_ids: tuple[str, ...]
    min_count: int = 1

    @property
    def lane(self) -> str:
        return self.reservation_id


class Order(InstanceMessage, frozen=True, kw_only=True):
    """To a node: what one instance shall be there, at an epoch.

    ``verb`` is ``run`` (build it, or start it again from its own disk), ``stop``, ``reboot`` or
    ``remove``. ``revision`` is that of the desired state; an older one is dropped. ``spec`` comes
    with ``run``, and with the others where it is known; ``adopts_epoch`` is that of the stopped
    copy whose disk it goes on with. ``is_forced`` skips the polite part of stop and reboot.
    ``sets_aside`` keeps the disk of what is removed, because nobody has asked for its end.
    """

    epoch: int
    revision: int
    verb: str
    spec: InstanceSpec | None = None
    adopts_epoch: int = 0
    seq: int = 0
    is_forced: bool = False
    sets_aside: bool = False


class Report(InstanceMessage, frozen=True, kw_only=True):
    """To ``controller``: what an instance is on a node; repeated until it is confirmed.

    ``state`` is ``running``, ``stopped``, ``gone`` (nothing of it is left), ``failed`` (it could
    not be built and nothing of it is left) or ``pending`` (under way: new timeline entries).
    ``is_asked`` is false where it happened by itself.
    """

    from_hypervisor: ClassVar[bool] = True

    node_id: Id
    epoch: Number
    seq: Number
    revision: Number
    state: Id
    is_asked: bool = True
    reason: Reason | None = None
    entries: tuple[TimelineEntry, ...] = ()


class ReportConfirmed(InstanceMessage, frozen=True, kw_only=True):
    """To a node: the controller has written the report; it need not be repeated."""

    epoch: int
    seq: int


class Wanted(InstanceMessage, frozen=True, kw_only=True):
    """To ``controller``: the desired state of an instance has changed; bring it about.

    ``is_forced`` skips the polite part of a stop.
    """

    is_forced: bool = False


class RebootWanted(InstanceMessage, frozen=True, kw_only=True):
    """To ``controller``: reboot a running instance."""


class DeadLetter(Message, frozen=True, kw_only=True):
    """To ``controller``: a message was given up after its last attempt.

    Of one that could not be read, ``subject`` says what it was about: its lane.
    """

    message_id: str
    topic: str
    kind: str
    subject: str = ""
    instance_id: str = ""
    instance_ids: tuple[str, ...] = ()
    epoch: int = 0
    error: str = ""


# -- questions and answers ------------------------------------------------------------------------


class Bind(InstanceMessage, frozen=True, kw_only=True):
    """To ``network``: may this node build this epoch, and with which addresses? → Bound."""

    from_hypervisor: ClassVar[bool] = True

    epoch: Number
    node_id: Id


class Bound(Message, frozen=True, kw_only=True):
    """The answer to Bind; the same question gets the same answer.

    ``images`` says where the node finds the images that others hold.
    """

    binding: Binding
    images: tuple[ImageGrant, ...] = ()


class Holding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One instance as a node holds it."""

    instance_id: Id
    epoch: Number
    seq: Number
    revision: Number
    state: Id


class Inventory(Message, frozen=True, kw_only=True):
    """To ``controller``: all that a node holds, the digests of its images, too. → Holdings"""

    from_hypervisor: ClassVar[bool] = True

    node_id: Id
    boot_id: Id
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=MOST_HELD)]
    images: Annotated[tuple[Id, ...], Meta(max_length=MOST_HELD)] = ()


class Holdings(Message, frozen=True, kw_only=True):
    """What the node should do so that it holds what it should; orders as they come by cast."""

    orders: tuple[Order, ...]


class GetPolicy(Message, frozen=True, kw_only=True):
    """To ``network``: what has changed in a network's policy since a revision? → PolicyAnswer

    A revision below 0 asks for the whole policy. The question also confirms that the node has
    ``known_revision`` in force.

    ``reach_revision`` is that at which the node knows the ports on other nodes, below 0 where it
    knows none; ``None`` does not ask for them.
    """

    from_hypervisor: ClassVar[bool] = True

    node_id: Id
    network_id: Id
    known_revision: Number
    known_group_ids: Annotated[tuple[Id, ...], Meta(max_length=MOST_HELD)] = ()
    reach_revision: Number | None = None


class PolicyAnswer(Message, frozen=True, kw_only=True):
    """At most one of ``policy`` and ``delta``; neither when nothing has changed.

    ``reach`` comes, where it was asked for, when something of it may have changed.
    """

    policy: NetworkPolicy | None = None
    delta: PolicyDelta | None = None
    reach: NetworkReach | None = None


class GetMembers(Message, frozen=True, kw_only=True):
    """To ``controller``: who is in the cluster, if that has changed since a revision? → Members"""

    from_hypervisor: ClassVar[bool] = True

    node_id: Id
    known_revision: Number


class Members(Message, frozen=True, kw_only=True):
    """The answer to GetMembers; no members when the revision is the known one.

    ``revoked`` holds the serial numbers, hexadecimal, of certificates that no longer count.
    """

    revision: int
    members: tuple[Member, ...] = ()
    revoked: tuple[str, ...] = ()


class AttachPort(InstanceMessage, frozen=True, kw_only=True):
    """To ``datapath``: make the tap of a port, link down. → PortAttached"""

    network: NetworkSpec
    port: PortSpec
    metadata: InstanceMetadata
    block_devices: tuple[BlockDeviceSpec, ...] = ()


class PortAttached(Message, frozen=True, kw_only=True):
    """The answer to AttachPort."""

    port: AttachedPort


class GuardPort(InstanceMessage, frozen=True, kw_only=True):
    """To ``datapath``: put the rules of an attached port in force and read them back. → Done"""

    port_id: str


class RaisePort(InstanceMessage, frozen=True, kw_only=True):
    """To ``datapath``: let frames pass; refused unless the rules are in force. → Done"""

    port_id: str


class DetachPort(InstanceMessage, frozen=True, kw_only=True):
    """To ``datapath``: remove tap, lease and metadata of a port. → Done

    An empty ``port_id`` stands for all ports of the instance that the node knows.
    """

    port_id: str


class UnguardPort(InstanceMessage, frozen=True, kw_only=True):
    """To ``datapath``: remove the rules of a port whose tap is gone. → Done

    An empty ``port_id`` stands for all ports of the instance that the node knows.
    """

    port_id: str


class KeepPorts(Message, frozen=True, kw_only=True):
    """To ``datapath``: all instances that the node holds. → Done

    Ports of others are detached and unguarded, unless they came but a moment ago.
    """

    instance_ids: tuple[str, ...]


class ReadConsole(InstanceMessage, frozen=True, kw_only=True):
    """To ``compute`` of a node: the end of the serial output. → ConsoleRead"""

    tail_bytes: int = 65536


class ConsoleRead(Message, frozen=True, kw_only=True):
    """The answer to ReadConsole."""

    output: ConsoleOutput


class Done(Message, frozen=True, kw_only=True):
    """The answer to a question that asks for nothing but the deed; ``detail`` is for people."""

    detail: str = ""


# -- announcements --------------------------------------------------------------------------------


class Heartbeat(Message, frozen=True, kw_only=True):
    """To ``controller``: a node is alive; what it has, and what it offers with overcommit.

    ``versions`` are those of messages that it understands, ``roles`` those that run; ``problems``
    say by role why one that should run does not. ``buses`` are the brokers that it is connected
    to, without logins, first the one that it sends over.
    """

    from_hypervisor: ClassVar[bool] = True

    node_id: Id
    boot_id: str
    capacity: NodeCapacity
    offered_vcpus: int
    offered_memory_mib: int
    offered_disk_gib: int
    versions: tuple[int, ...] = VERSIONS
    release: str = ""
    roles: tuple[str, ...] = ()
    problems: dict[str, str] = {}
    buses: tuple[str, ...] = ()


class FetchImage(Message, frozen=True, kw_only=True):
    """To ``compute`` of a node: hold this image, too, so that it outlives the node that has it."""

    image: ImageRef
    grant: ImageGrant


class PolicyChanged(Message, frozen=True, kw_only=True):
    """To nodes: the policy of a network has a new revision; ask for the difference.

    It may wait until ``rest_s`` seconds after the last such question, for more to come.
    """

    network_id: str
    revision: int
    rest_s: float = 0.0


class MembersChanged(Message, frozen=True, kw_only=True):
    """To every ``member``: the list of members, or what a node is entitled to, has changed."""

    revision: int


KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        AttachPort,
        Bind,
        Bound,
        ConsoleRead,
        DeadLetter,
        DetachPort,
        Done,
        FetchImage,
        GetMembers,
        GetPolicy,
        GuardPort,
        Heartbeat,
        Holdings,
        Inventory,
        KeepPorts,
        Members,
        MembersChanged,
        Order,
        Place,
        PolicyAnswer,
        PolicyChanged,
        PortAttached,
        RaisePort,
        ReadConsole,
        RebootWanted,
        Report,
        ReportConfirmed,
        UnguardPort,
        Wanted,
    )
}
"""Every message by its name on the wire."""

_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Any]] = {}


def encode(message: Message) -> bytes:
    """Return a message's body; its name travels beside it."""
    return _encoder.encode(message)


def decode(kind: str, body: bytes) -> Message:
    """Return the message of that name and body.

    :raises InputError: the name is unknown or the body does not fit; it can never be handled.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        if kind not in KINDS:
            raise InputError(f"There is no message {kind!r}.")
        decoder = _decoders[kind] = msgspec.json.Decoder(KINDS[kind])
    try:
        message: Message = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"Could not decode a {kind}: {error}") from error
    return message


def node_topic(role: str, node_id: str) -> str:
    """Return the topic of one node's own role (``compute`` or ``datapath``)."""
    return f"{role}.{node_id}"
