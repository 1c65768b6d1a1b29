"""The tables of the cluster's state. Times are seconds since the epoch; bodies are JSON values."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Integer on SQLite: only that counts up by itself there.
_Counter = BigInteger().with_variant(Integer, "sqlite")


def _id(name: str = "id", **options: object) -> Column[str]:
    return Column(name, String(64), **options)  # type: ignore[arg-type]


def _time(name: str, **options: object) -> Column[float]:
    return Column(name, Float(53), **options)  # type: ignore[arg-type]


cluster = Table(
    "cluster",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    _id(primary_key=True),
    Column("name", String(255), nullable=False),
    Column("zone", String(64), nullable=False),
    Column("roles", Text, nullable=False),
    Column("accepts_instances", Boolean, nullable=False, default=True),
    # The peer service, "host:port"; empty on a lone node.
    Column("address", String(255), nullable=False, default=""),
    Column("certificate", Text, nullable=False, default=""),
    Column("is_control", Boolean, nullable=False, default=True),
    # What the operator lets it offer; nothing: whatever it has.
    Column("approved_vcpus", Integer),
    Column("approved_memory_mib", BigInteger),
    Column("approved_disk_gib", BigInteger),
    _time("joined_at", nullable=False),
    _time("removed_at"),
)

node_status = Table(
    "node_status",
    metadata,
    _id("node_id", primary_key=True),
    Column("boot_id", String(64), nullable=False, default=""),
    Column("is_up", Boolean, nullable=False, default=False),
    _time("seen_at", nullable=False, default=0.0),
    _time("changed_at", nullable=False, default=0.0),
    Column("body", LargeBinary),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    _id(primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("node_name", String(255), nullable=False, default=""),
    Column("created_by", String(255), nullable=False),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    _time("used_at"),
    _id("used_by"),
    _time("revoked_at"),
)

revoked_certificates = Table(
    "revoked_certificates",
    metadata,
    Column("serial", String(64), primary_key=True),
    _id("node_id", nullable=False),
    _time("revoked_at", nullable=False),
    _time("expires_at", nullable=False),
)

cluster_secrets = Table(
    "cluster_secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    _time("changed_at", nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    _id("owner", nullable=False),
    _time("until", nullable=False),
)

node_claims = Table(
    "node_claims",
    metadata,
    _id("node_id", primary_key=True),
    Column("vcpus", Integer, nullable=False),
    Column("vcpus_claimed", Integer, nullable=False, default=0),
    Column("memory_mib", BigInteger, nullable=False),
    Column("memory_claimed_mib", BigInteger, nullable=False, default=0),
    Column("disk_gib", BigInteger, nullable=False),
    Column("disk_claimed_gib", BigInteger, nullable=False, default=0),
    Column("instances", Integer, nullable=False, default=0),
)

projects = Table(
    "projects",
    metadata,
    _id(primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("is_enabled", Boolean, nullable=False, default=True),
    _time("created_at", nullable=False),
)

users = Table(
    "users",
    metadata,
    _id(primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("is_enabled", Boolean, nullable=False, default=True),
    _time("created_at", nullable=False),
)

memberships = Table(
    "memberships",
    metadata,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("access_level", String(16), nullable=False),
)

access_keys = Table(
    "access_keys",
    metadata,
    _id(primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("secret_sealed", LargeBinary, nullable=False),
    Column("is_enabled", Boolean, nullable=False, default=True),
    _time("created_at", nullable=False),
    _time("expires_at"),
)

quotas = Table(
    "quotas",
    metadata,
    _id("project_id", primary_key=True),
    Column("resource", String(32), primary_key=True),
    Column("used", BigInteger, nullable=False, default=0),
    Column("ceiling", BigInteger, nullable=False),
)

key_pairs = Table(
    "key_pairs",
    metadata,
    _id(primary_key=True),
    _id("project_id", nullable=False),
    Column("name", String(255), nullable=False),
    Column("type", String(16), nullable=False),
    Column("fingerprint", String(128), nullable=False),
    Column("public_key", Text, nullable=False),
    _time("created_at", nullable=False),
    UniqueConstraint("project_id", "name"),
)

images = Table(
    "images",
    metadata,
    _id(primary_key=True),
    _id("project_id", nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    Column("description", String(255), nullable=False, default=""),
    Column("format", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("virtual_size_bytes", BigInteger, nullable=False, default=0),
    _id("kernel_id"),
    _id("ramdisk_id"),
    Column("kernel_command_line", Text, nullable=False, default=""),
    Column("root_device_name", String(32), nullable=False, default="/dev/vda"),
    Column("is_public", Boolean, nullable=False, default=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False, default=""),
    Column("properties", LargeBinary),
    _time("created_at", nullable=False),
    _time("deleted_at"),
    Index(None, "project_id", "created_at"),
)

image_shares = Table(
    "image_shares",
    metadata,
    Column("image_id", ForeignKey("images.id"), primary_key=True),
    # No foreign key: whether an account exists is not for the owner of an image to learn.
    _id("project_id", primary_key=True, index=True),
    _time("created_at", nullable=False),
)

image_locations = Table(
    "image_locations",
    metadata,
    Column("sha256", String(64), primary_key=True),
    _id("node_id", primary_key=True),
    _time("added_at", nullable=False),
)

vpcs = Table(
    "vpcs",
    metadata,
    _id(primary_key=True),
    Column("cidr", String(64), nullable=False),
    Column("is_default", Boolean, nullable=False, default=False),
    _time("created_at", nullable=False),
)

networks = Table(
    "networks",
    metadata,
    _id(primary_key=True),
    Column("vpc_id", ForeignKey("vpcs.id"), nullable=False, index=True),
    Column("zone", String(64), nullable=False, default=""),
    Column("is_default", Boolean, nullable=False, default=False),
    Column("policy_revision", BigInteger, nullable=False, default=0),
    # The only node that has it; empty where its type spans nodes.
    _id("node_id", nullable=False, default=""),
    Column("segment", Integer),
    Column("body", LargeBinary, nullable=False),
    _time("created_at", nullable=False),
    Index(None, "segment", unique=True),
)

addresses = Table(
    "addresses",
    metadata,
    _id("network_id", primary_key=True),
    Column("address", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
    _id("port_id", index=True),
    Column("is_reserved", Boolean, nullable=False, default=False),
    _time("freed_at", nullable=False, default=0.0),
    Column("freed_revision", BigInteger, nullable=False, default=0),
    Index(
        "ix_addresses_unused",
        "network_id",
        "position",
        postgresql_where=text("port_id IS NULL"),
        sqlite_where=text("port_id IS NULL"),
    ),
)

security_groups = Table(
    "security_groups",
    metadata,
    _id(primary_key=True),
    _id("project_id", nullable=False),
    Column("vpc_id", ForeignKey("vpcs.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("description", String(255), nullable=False),
    _time("created_at", nullable=False),
    UniqueConstraint("project_id", "vpc_id", "name"),
)

security_group_rules = Table(
    "security_group_rules",
    metadata,
    _id(primary_key=True),
    Column("group_id", ForeignKey("security_groups.id"), nullable=False),
    Column("is_egress", Boolean, nullable=False),
    Column("protocol", Integer, nullable=False),
    Column("from_port", Integer, nullable=False),
    Column("to_port", Integer, nullable=False),
    Column("cidr", String(64), nullable=False, default=""),
    _id("source_group_id", nullable=False, default="", index=True),
    Column("description", String(255), nullable=False, default=""),
    _time("created_at", nullable=False),
    UniqueConstraint(
        "group_id", "is_egress", "protocol", "from_port", "to_port", "cidr", "source_group_id"
    ),
)

reservations = Table(
    "reservations",
    metadata,
    _id(primary_key=True),
    _id("project_id", nullable=False),
    Column("client_token", String(64)),
    Column("request_hash", String(64), nullable=False, default=""),
    Column("request_id", String(64), nullable=False),
    _time("created_at", nullable=False),
    UniqueConstraint("project_id", "client_token"),
)

instances = Table(
    "instances",
    metadata,
    _id(primary_key=True),
    _id("project_id", nullable=False),
    Column("reservation_id", ForeignKey("reservations.id"), nullable=False, index=True),
    Column("request_id", String(64), nullable=False),
    Column("launch_index", Integer, nullable=False),
    _id("image_id", nullable=False),
    _id("kernel_id"),
    _id("ramdisk_id"),
    Column("instance_type", String(32), nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("disk_gib", BigInteger, nullable=False),
    Column("zone", String(64)),
    Column("key_name", String(255)),
    Column("public_key", Text, nullable=False, default=""),
    Column("user_data_base64", Text, nullable=False, default=""),
    Column("injection", String(32), nullable=False, default=""),
    Column("desired", String(16), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("epoch", Integer, nullable=False, default=0),
    Column("seq", BigInteger, nullable=False, default=0),
    Column("attempts", Integer, nullable=False, default=0),
    Column("is_counted", Boolean, nullable=False, default=True),
    _id("node_id", index=True),
    Column("reason_code", String(64), nullable=False, default=""),
    Column("reason_message", Text, nullable=False, default=""),
    Column("transition_reason", String(255), nullable=False, default=""),
    Column("attributes", LargeBinary),
    _time("created_at", nullable=False),
    _time("launched_at"),
    _time("terminated_at"),
    _time("progress_at", nullable=False),
    Index(None, "project_id", "id"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "state", "progress_at"),
)

ports = Table(
    "ports",
    metadata,
    _id(primary_key=True),
    Column("instance_id", ForeignKey("instances.id"), nullable=False, index=True),
    _id("project_id", nullable=False),
    Column("network_id", ForeignKey("networks.id"), nullable=False, index=True),
    Column("device_index", Integer, nullable=False),
    Column("mac", String(17), nullable=False, unique=True),
    Column("is_bound", Boolean, nullable=False, default=False),
    _time("created_at", nullable=False),
    UniqueConstraint("instance_id", "device_index"),
)

port_groups = Table(
    "port_groups",
    metadata,
    Column("port_id", ForeignKey("ports.id", ondelete="CASCADE"), primary_key=True),
    Column("group_id", ForeignKey("security_groups.id"), primary_key=True, index=True),
)

block_devices = Table(
    "block_devices",
    metadata,
    _id(primary_key=True),
    Column("instance_id", ForeignKey("instances.id"), nullable=False, index=True),
    Column("device_name", String(32), nullable=False),
    Column("disk_gib", BigInteger, nullable=False),
    _id("image_id", nullable=False),
    Column("delete_on_termination", Boolean, nullable=False, default=True),
)

tags = Table(
    "tags",
    metadata,
    _id("resource_id", primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(256), nullable=False),
    Column("resource_type", String(32), nullable=False),
    _id("project_id", nullable=False),
    Index(None, "project_id", "key", "value"),
)

placements = Table(
    "placements",
    metadata,
    _id("instance_id", primary_key=True),
    Column("epoch", Integer, primary_key=True),
    _id("node_id", nullable=False),
    Column("phase", String(16), nullable=False),
    Column("adopts_epoch", Integer, nullable=False, default=0),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("disk_gib", BigInteger, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    _time("created_at", nullable=False),
    _time("changed_at", nullable=False),
    Index(None, "node_id", "phase"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _id("instance_id", nullable=False, index=True),
    Column("epoch", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _time("made_at", nullable=False, index=True),
)

timeline = Table(
    "timeline",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _id("instance_id", nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("node", String(255), nullable=False),
    Column("role", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    _time("started_at", nullable=False),
    Column("duration_ms", Float(53), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("detail", Text, nullable=False, default=""),
    Column("causes", LargeBinary),
    UniqueConstraint("instance_id", "epoch", "role", "name", "started_at"),
    Index(None, "started_at"),
)

policy_changes = Table(
    "policy_changes",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _id("network_id", nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    _id("subject", nullable=False),
    Column("address", String(64), nullable=False, default=""),
    Index(None, "network_id", "revision"),
)

policy_confirmations = Table(
    "policy_confirmations",
    metadata,
    _id("network_id", primary_key=True),
    _id("node_id", primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    _id(primary_key=True),
    Column("topic", String(128), nullable=False),
    Column("lane", String(64), nullable=False, default=""),
    Column("kind", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    _time("created_at", nullable=False),
    # When somebody last took it to publish it; of no meaning where the outbox is the queue.
    _time("relayed_at", nullable=False, default=0.0),
    _time("dead_at"),
    Column("error", Text, nullable=False, default=""),
    # The login that sent what was given up, where nobody vouches for it; empty where it is ours.
    Column("sender", String(64), nullable=False, default=""),
    Index(None, "dead_at", "created_at"),
    Index(
        None,
        "sender",
        "dead_at",
        sqlite_where=text("sender <> ''"),
        postgresql_where=text("sender <> ''"),
    ),
)

# How many messages of a sender were given up and are not kept, since there were too many.
forgotten_letters = Table(
    "forgotten_letters",
    metadata,
    Column("sender", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
    _time("last_at", nullable=False),
)

handled = Table(
    "handled",
    metadata,
    Column("consumer", String(64), primary_key=True),
    _id("message_id", primary_key=True),
    _time("handled_at", nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    _time("at", nullable=False, index=True),
    Column("actor", String(255), nullable=False),
    _id("user_id", nullable=False, default=""),
    Column("access_key_id", String(128), nullable=False, default=""),
    _id("project_id", nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False, default=""),
    Column("result", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("source", String(64), nullable=False),
)

# Which transactions were committed, for who lost the answer; of no meaning to any but the server
# whose transactions they were.
commits = Table(
    "commits",
    metadata,
    _id(primary_key=True),
    Column("is_done", Boolean, nullable=False),
    _time("at", nullable=False, index=True),
)

# Since which release a program can work with the tables as they are now.
compatibility = Table(
    "compatibility",
    metadata,
    Column("revision", String(32), primary_key=True),
    Column("works_since", String(32), nullable=False),
)
