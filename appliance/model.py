"""Values that cross roles and hooks: frozen, serialisable, with units in their names.

Fields may be added with defaults; none is ever renamed or removed within an API version, so that
nodes and plugins of neighbouring versions understand each other.
"""

from __future__ import annotations

import enum

from msgspec import Struct


class Value(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every value in this module."""


class InstanceState(enum.StrEnum):
    """The states of EC2's instance life cycle."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"


class Desired(enum.StrEnum):
    """What the owner wants an instance to be."""

    RUNNING = "running"
    STOPPED = "stopped"
    TERMINATED = "terminated"


class Phase(enum.StrEnum):
    """The phases of a placement."""

    CLAIMED = "claimed"
    COMMITTED = "committed"
    GONE = "gone"
    FENCED = "fenced"


class Reason(Value, frozen=True, kw_only=True):
    """Why an instance is in its state, in EC2's form.

    ``code`` is EC2's, e.g. ``Server.InsufficientInstanceCapacity`` or
    ``Client.UserInitiatedShutdown``; ``message`` is a sentence.
    """

    code: str
    message: str


# -- scheduling ---------------------------------------------------------------------------------


class NodeView(Value, frozen=True, kw_only=True):
    """A node as the scheduler sees it. Capacities already include the overcommit ratios."""

    node_id: str
    name: str
    zone: str
    is_up: bool
    accepts_instances: bool = True
    vcpus: int
    vcpus_claimed: int
    memory_mib: int
    memory_claimed_mib: int
    disk_gib: int
    disk_claimed_gib: int
    instances: int = 0


class Member(Value, frozen=True, kw_only=True):
    """A node as all others know it. ``address`` is that of its peer service, ``host:port``.

    ``certificate`` is PEM, signed by the cluster's authority; ``is_control``: it may reach the
    store.
    """

    node_id: str
    name: str
    zone: str
    address: str
    roles: tuple[str, ...]
    is_control: bool
    certificate: str
    is_up: bool = True


class PlacementRequest(Value, frozen=True, kw_only=True):
    """One instance that wants a node.

    ``pinned_node_id`` is set where the instance's disk lies on a node, or only that node has its
    network; ``excluded_node_ids`` are
    nodes that have been tried for it. ``seed`` makes a random choice repeatable.
    """

    instance_id: str
    project_id: str
    instance_type: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    zone: str | None = None
    pinned_node_id: str | None = None
    excluded_node_ids: tuple[str, ...] = ()
    seed: int = 0


class Candidate(Value, frozen=True, kw_only=True):
    """A node that could hold the instance; ``scores`` maps a weight to its weighted score."""

    node_id: str
    score: float = 0.0
    scores: dict[str, float] = {}


class Refusals(Value, frozen=True, kw_only=True):
    """What one filter refused: how many nodes, why, and a few examples."""

    filter: str
    nodes: int
    reasons: dict[str, int]
    examples: tuple[str, ...] = ()


class Ranking(Value, frozen=True, kw_only=True):
    """The answer of a scheduler plugin.

    ``node_ids`` are the nodes to try, best first; empty when none fits. ``refusals`` says which
    filter refused how many and why, in the order in which the filters ran; ``best`` explains the
    first few of ``node_ids``. Bounded: the record of a decision stays under 16 KB.
    """

    node_ids: tuple[str, ...]
    considered: int
    refusals: tuple[Refusals, ...] = ()
    best: tuple[Candidate, ...] = ()


class Decision(Value, frozen=True, kw_only=True):
    """The record of one placement choice, good or bad."""

    instance_id: str
    epoch: int
    scheduler: str
    ranking: Ranking
    node_id: str | None
    node_name: str | None
    claims_lost: int = 0
    summary: str
    made_at: float


# -- images and disks ---------------------------------------------------------------------------


class ImageRef(Value, frozen=True, kw_only=True):
    """Bytes in the image store, by content.

    ``format`` is ``raw`` or ``qcow2`` for disks, ``kernel`` or ``ramdisk`` for boot files; it was
    verified when the image came in and is never probed again.
    """

    image_id: str
    sha256: str
    format: str
    size_bytes: int
    virtual_size_bytes: int = 0


class ImageHolder(Value, frozen=True, kw_only=True):
    """A node that has an image. ``address`` is that of its peer service."""

    node_id: str
    address: str


class ImageGrant(Value, frozen=True, kw_only=True):
    """Leave for one node to fetch an image from those that hold it.

    ``ticket`` is what it shows them: a control node has signed it.
    """

    sha256: str
    holders: tuple[ImageHolder, ...]
    ticket: str


class BlockDeviceSpec(Value, frozen=True, kw_only=True):
    """A disk of an instance. ``disk_gib`` 0 means the size of the image itself."""

    device_name: str
    disk_gib: int
    image: ImageRef
    delete_on_termination: bool = True


class DiskAttachment(Value, frozen=True, kw_only=True):
    """A file that the hypervisor shows to the instance. ``device`` is ``disk`` or ``cdrom``."""

    path: str
    format: str
    target: str
    device: str = "disk"
    is_read_only: bool = False
    serial: str = ""


# -- instances ----------------------------------------------------------------------------------


class PortRequest(Value, frozen=True, kw_only=True):
    """A network card that the instance wants; its addresses come with the binding."""

    port_id: str
    device_index: int
    mac: str
    network_id: str


class InstanceSpec(Value, frozen=True, kw_only=True):
    """All that a compute node needs to know to build an instance, without secrets."""

    instance_id: str
    project_id: str
    reservation_id: str
    launch_index: int
    image_id: str
    instance_type: str
    vcpus: int
    memory_mib: int
    zone: str
    ports: tuple[PortRequest, ...]
    block_devices: tuple[BlockDeviceSpec, ...]
    kernel: ImageRef | None = None
    ramdisk: ImageRef | None = None
    kernel_command_line: str = ""
    injection: str = ""
    image_properties: dict[str, str] = {}


class PowerState(enum.StrEnum):
    """What the hypervisor says of an instance."""

    RUNNING = "running"
    SHUT_OFF = "shut-off"
    CRASHED = "crashed"
    PAUSED = "paused"


SHUT_ITSELF_DOWN = "it shut down"
"""The detail of an instance that is off because its own system switched it off. Its owner may want
it terminated then, with its disk: no other end has this detail."""


class InstanceFact(Value, frozen=True, kw_only=True):
    """One instance as the hypervisor plugin finds it. ``epoch`` is read from its own record.

    ``detail`` says why it is in that state; see :data:`SHUT_ITSELF_DOWN`.
    """

    instance_id: str
    epoch: int
    power: PowerState
    detail: str = ""


class PowerEvent(Value, frozen=True, kw_only=True):
    """A change of power state that nobody on the node asked for, or the end of one that was.

    ``detail`` says why; see :data:`SHUT_ITSELF_DOWN`.
    """

    instance_id: str
    power: PowerState
    detail: str = ""


class InstanceDefinition(Value, frozen=True, kw_only=True):
    """What the compute plugin turns into a machine.

    ``directory`` belongs to the instance alone and holds ``console.log``; ``taps`` are in order
    of the device index and were made by the network plugin.
    """

    instance_id: str
    epoch: int
    name: str
    directory: str
    vcpus: int
    memory_mib: int
    disks: tuple[DiskAttachment, ...]
    taps: tuple[TapAttachment, ...]
    kernel_path: str = ""
    ramdisk_path: str = ""
    kernel_command_line: str = ""


class TapAttachment(Value, frozen=True, kw_only=True):
    """A tap of the node that becomes a network card of the instance."""

    tap: str
    mac: str
    mtu: int = 1500


class NodeCapacity(Value, frozen=True, kw_only=True):
    """What a node has for instances, before overcommit, and how loaded it is."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    memory_free_mib: int = 0
    disk_free_gib: int = 0
    load_1m: float = 0.0
    hypervisor: str = ""
    accelerator: str = ""


# -- networks and ports -------------------------------------------------------------------------


class NetworkSpec(Value, frozen=True, kw_only=True):
    """One L2 segment as a node needs to know it. ``segment`` is a VLAN id or a VNI, 0 for none.

    No other network of the cluster has the same segment.
    """

    network_id: str
    vpc_id: str
    type: str
    cidr: str
    gateway: str
    bridge: str
    dns: tuple[str, ...] = ()
    domain: str = "anynode.internal"
    mtu: int = 1500
    segment: int = 0
    cidr6: str = ""
    gateway6: str = ""


class PortSpec(Value, frozen=True, kw_only=True):
    """A network card with the addresses that are its own, IPv4 and IPv6, first one primary."""

    port_id: str
    instance_id: str
    device_index: int
    mac: str
    network_id: str
    addresses: tuple[str, ...]
    hostname: str
    group_ids: tuple[str, ...]


class AttachedPort(Value, frozen=True, kw_only=True):
    """A port that has its tap on this node."""

    port_id: str
    network_id: str
    tap: str


class RemotePort(Value, frozen=True, kw_only=True):
    """A port that is on another node, which other nodes reach at ``node_address``.

    ``port_id`` is empty where only what a kernel knows of the port can be told.
    """

    port_id: str
    mac: str
    addresses: tuple[str, ...]
    node_address: str


class NetworkReach(Value, frozen=True, kw_only=True):
    """Where the ports of a network are that are not on this node, at one revision of its policy.

    Those of ``remotes`` replace what was known of the same ports. What is named in neither list
    stays, unless ``is_whole``: then it goes.
    """

    revision: int
    remotes: tuple[RemotePort, ...] = ()
    removed_port_ids: tuple[str, ...] = ()
    is_whole: bool = False


class InstanceMetadata(Value, frozen=True, kw_only=True):
    """What the metadata service and the injection tell the instance about itself."""

    instance_id: str
    project_id: str
    reservation_id: str
    launch_index: int
    image_id: str
    instance_type: str
    zone: str
    region: str
    hostname: str
    security_groups: tuple[str, ...] = ()
    kernel_id: str = ""
    ramdisk_id: str = ""
    key_name: str = ""
    public_key: str = ""
    user_data_base64: str = ""
    tags: dict[str, str] = {}
    requires_token: bool = False
    token_hop_limit: int = 1


class Binding(Value, frozen=True, kw_only=True):
    """The network role's answer to a compute node: the secrets travel here and nowhere else."""

    instance_id: str
    epoch: int
    networks: tuple[NetworkSpec, ...]
    ports: tuple[PortSpec, ...]
    metadata: InstanceMetadata


# -- firewall -----------------------------------------------------------------------------------


class FirewallRule(Value, frozen=True, kw_only=True):
    """One allow rule of a security group.

    ``protocol`` is an IANA number or -1 for all. ``from_port``/``to_port`` bound the destination
    port for TCP, UDP, DCCP and SCTP; for ICMP and ICMPv6 they are type and code; -1 means any.
    Exactly one of ``cidr`` and ``source_group_id`` is set. For egress the source is the peer.
    """

    rule_id: str
    protocol: int
    from_port: int = -1
    to_port: int = -1
    cidr: str = ""
    source_group_id: str = ""


class FirewallGroup(Value, frozen=True, kw_only=True):
    """A security group as a network sees it: its rules, and the addresses of all its members."""

    group_id: str
    ingress: tuple[FirewallRule, ...] = ()
    egress: tuple[FirewallRule, ...] = ()
    members: tuple[str, ...] = ()


class FirewallPort(Value, frozen=True, kw_only=True):
    """A port on this node: what it may send as, and which groups guard it."""

    port_id: str
    tap: str
    mac: str
    addresses: tuple[str, ...]
    group_ids: tuple[str, ...]


class NetworkPolicy(Value, frozen=True, kw_only=True):
    """All that a node's firewall knows of one network, at one revision.

    ``ports`` are those on this node; ``groups`` are every group that a port here is in or that a
    rule of such a group names as its source.
    """

    network: NetworkSpec
    revision: int
    ports: tuple[FirewallPort, ...] = ()
    groups: tuple[FirewallGroup, ...] = ()


class MemberChange(Value, frozen=True, kw_only=True):
    """Addresses that joined or left one security group; harmless when already so."""

    group_id: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class PolicyDelta(Value, frozen=True, kw_only=True):
    """The difference between two revisions of one network's policy on one node.

    ``groups`` replace the groups of the same id, members included; ``ports`` likewise;
    ``member_changes`` then apply to groups that were there before. What is not named stays.
    """

    network: NetworkSpec
    from_revision: int
    to_revision: int
    ports: tuple[FirewallPort, ...] = ()
    removed_port_ids: tuple[str, ...] = ()
    groups: tuple[FirewallGroup, ...] = ()
    removed_group_ids: tuple[str, ...] = ()
    member_changes: tuple[MemberChange, ...] = ()


class FirewallState(Value, frozen=True, kw_only=True):
    """What a firewall plugin has in force, read back from the kernel.

    ``revisions`` maps a network to the revision that was stored with its rules. ``is_guarded``
    says whether the catch-all drop is in place. ``warnings`` are sentences for ``verify``.
    """

    is_guarded: bool
    revisions: dict[str, int]
    taps: tuple[str, ...]
    warnings: tuple[str, ...] = ()


# -- injection ----------------------------------------------------------------------------------


class InjectionRequest(Value, frozen=True, kw_only=True):
    """What to write into, or beside, an instance's disk. ``directory`` is the instance's own."""

    instance_id: str
    directory: str
    root_disk: DiskAttachment
    metadata: InstanceMetadata
    networks: tuple[NetworkSpec, ...]
    ports: tuple[PortSpec, ...]
    image_properties: dict[str, str] = {}


class InjectionResult(Value, frozen=True, kw_only=True):
    """What was done, in words for the timeline, and the disks that were made for the instance."""

    summary: str
    disks: tuple[DiskAttachment, ...] = ()


# -- timeline -----------------------------------------------------------------------------------


class TimelineEntry(Value, frozen=True, kw_only=True):
    """One hop or step of an instance. ``causes`` is the error chain, outermost first.

    ``outcome`` is ``ok``, ``failed``, ``undone``, ``refused`` or ``skipped``.
    """

    instance_id: str
    epoch: int
    request_id: str
    node: str
    role: str
    name: str
    started_at: float
    duration_ms: float
    outcome: str = "ok"
    detail: str = ""
    causes: tuple[str, ...] = ()


class Finding(Value, frozen=True, kw_only=True):
    """One thing that ``anynode verify`` or a node check has to say.

    ``code`` is stable (``I2.DOMAIN_ORPHAN``); ``level`` is ``error`` or ``warning``; ``fix`` says
    what ``--fix`` would do, empty when it would do nothing.
    """

    code: str
    level: str
    message: str
    subject: str = ""
    fix: str = ""


# -- identity -----------------------------------------------------------------------------------


class Identity(Value, frozen=True, kw_only=True):
    """Who calls, for which project, and what the caller may do there.

    ``request_digest`` is the same for the same signed request sent again, and for no other; empty
    where the way of authentication leaves replays to itself.
    """

    user_id: str
    user_name: str
    project_id: str
    access_level: str
    access_key_id: str = ""
    request_digest: str = ""


def tap_name(port_id: str) -> str:
    """Return the name of a port's tap: at most 15 bytes, and never one that libvirt would claim.

    Source: libvirt removes host devices named ``vnet*`` on its own.
    """
    return f"an{port_id.removeprefix('eni-')[:12]}"


class NetworkState(Value, frozen=True, kw_only=True):
    """What a network plugin has on this node. ``warnings`` are sentences for ``verify``.

    ``remotes`` are by network id the ports on other nodes that frames of this node can reach,
    each list in order of the MACs; their port ids may be empty.
    """

    network_ids: tuple[str, ...]
    ports: tuple[AttachedPort, ...]
    warnings: tuple[str, ...] = ()
    remotes: dict[str, tuple[RemotePort, ...]] = {}


class ConsoleOutput(Value, frozen=True, kw_only=True):
    """The end of an instance's serial output. ``written_at`` is the time of its last change."""

    text: bytes
    written_at: float


class HttpRequest(Value, frozen=True, kw_only=True):
    """A request as it came in, for authentication: nothing decoded, nothing dropped.

    ``target`` is the raw path with its query string; header names are in lower case and in order.
    ``source`` is the peer's address, or that and who says so: ``192.0.2.7 via n3`` came through a
    node that has no more than its word for it.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    source: str
