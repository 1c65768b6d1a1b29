"""What the store says about one node and all that it shares: read in one view, for ``verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select

from appliance.model import Desired, InstanceState, NetworkSpec, Phase
from appliance.seal import Seal
from appliance.store import Transaction, identity
from appliance.store.outbox import Sender, senders
from appliance.store.placements import ACTIVE
from appliance.store.schema import (
    access_keys,
    addresses,
    decisions,
    images,
    instances,
    key_pairs,
    networks,
    node_claims,
    node_status,
    outbox,
    placements,
    ports,
    quotas,
    security_groups,
    timeline,
)


@dataclass(frozen=True, kw_only=True)
class InstanceRow:
    """An instance, and whether it says why it is as it is."""

    instance_id: str
    project_id: str
    desired: Desired
    state: InstanceState
    epoch: int
    revision: int
    vcpus: int
    memory_mib: int
    is_counted: bool
    has_reason: bool
    progress_at: float
    image_ids: tuple[str, ...]
    was_fenced: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way for it."""
        settled = {
            InstanceState.RUNNING: Desired.RUNNING,
            InstanceState.STOPPED: Desired.STOPPED,
            InstanceState.TERMINATED: Desired.TERMINATED,
        }
        return settled.get(self.state) is self.desired


@dataclass(frozen=True, kw_only=True)
class PlacementRow:
    """A placement that is claimed or committed."""

    instance_id: str
    epoch: int
    node_id: str
    phase: Phase
    vcpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True, kw_only=True)
class PortRow:
    """A port with its addresses."""

    port_id: str
    instance_id: str
    network_id: str
    mac: str
    is_bound: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a node offers, or what is claimed of it."""

    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    instances: int = 0


@dataclass(frozen=True, kw_only=True)
class OutboxEntry:
    """A cast of ours that has not taken effect."""

    message_id: str
    topic: str
    kind: str
    created_at: float
    attempts: int
    is_dead: bool
    error: str


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """One view of the store. Ids map to rows; ``quotas`` maps project and resource to used.

    ``senders`` are those that sent what could not be taken, and for whom nobody vouches.
    """

    instances: Mapping[str, InstanceRow]
    placements: tuple[PlacementRow, ...]
    ports: Mapping[str, PortRow]
    stray_addresses: tuple[tuple[str, str], ...]
    networks: Mapping[str, NetworkSpec]
    policy_revisions: Mapping[str, int]
    claims: Mapping[str, Room]
    offers: Mapping[str, Room]
    quotas: Mapping[tuple[str, str], int]
    group_counts: Mapping[str, int]
    key_pair_counts: Mapping[str, int]
    image_digests: Mapping[str, str]
    outbox: tuple[OutboxEntry, ...]
    newest_at: float
    seen_at: Mapping[str, float]
    senders: tuple[Sender, ...] = ()


def read(tx: Transaction) -> StoreFacts:
    """Return all that ``verify`` compares: a fixed number of statements."""
    owned: dict[str, tuple[str, ...]] = {}
    for row in tx.execute(
        select(addresses.c.port_id, addresses.c.address).where(addresses.c.port_id.is_not(None))
    ):
        owned[row.port_id] = (*owned.get(row.port_id, ()), row.address)
    known_ports = _ports(tx, owned)
    claims, offers = _room(tx)
    network_rows = tx.execute(select(networks.c.id, networks.c.body, networks.c.policy_revision))
    specs, revisions = {}, {}
    for row in network_rows:
        specs[row.id] = msgspec.json.decode(row.body, type=NetworkSpec)
        revisions[row.id] = row.policy_revision
    return StoreFacts(
        instances={row.instance_id: row for row in _instances(tx)},
        placements=_placements(tx),
        ports=known_ports,
        stray_addresses=tuple(
            (port_id, address)
            for port_id, items in owned.items()
            if port_id not in known_ports
            for address in items
        ),
        networks=specs,
        policy_revisions=revisions,
        claims=claims,
        offers=offers,
        quotas={(row.project_id, row.resource): row.used for row in tx.execute(select(quotas))},
        group_counts=_count(tx, security_groups.c.project_id),
        key_pair_counts=_count(tx, key_pairs.c.project_id),
        image_digests={row.sha256: row.id for row in tx.execute(select(images))},
        outbox=_outbox(tx),
        senders=tuple(senders(tx)),
        newest_at=tx.execute(select(func.max(node_status.c.seen_at))).scalar() or 0.0,
        seen_at={row.node_id: row.seen_at for row in tx.execute(select(node_status))},
    )


def _instances(tx: Transaction) -> list[InstanceRow]:
    query = select(placements.c.instance_id).where(placements.c.phase == Phase.FENCED.value)
    fenced = set(tx.execute(query).scalars())
    return [
        InstanceRow(
            instance_id=row.id,
            project_id=row.project_id,
            desired=Desired(row.desired),
            state=InstanceState(row.state),
            epoch=row.epoch,
            revision=row.revision,
            vcpus=row.vcpus,
            memory_mib=row.memory_mib,
            is_counted=row.is_counted,
            has_reason=bool(row.reason_code or row.transition_reason),
            progress_at=row.progress_at,
            image_ids=tuple(i for i in (row.image_id, row.kernel_id, row.ramdisk_id) if i),
            was_fenced=row.id in fenced,
        )
        for row in tx.execute(select(instances))
    ]


def _placements(tx: Transaction) -> tuple[PlacementRow, ...]:
    query = select(placements).where(placements.c.phase.in_(ACTIVE))
    return tuple(
        PlacementRow(
            instance_id=row.instance_id,
            epoch=row.epoch,
            node_id=row.node_id,
            phase=Phase(row.phase),
            vcpus=row.vcpus,
            memory_mib=row.memory_mib,
            disk_gib=row.disk_gib,
        )
        for row in tx.execute(query)
    )


def _ports(tx: Transaction, owned: Mapping[str, tuple[str, ...]]) -> dict[str, PortRow]:
    return {
        row.id: PortRow(
            port_id=row.id,
            instance_id=row.instance_id,
            network_id=row.network_id,
            mac=row.mac,
            is_bound=row.is_bound,
            addresses=owned.get(row.id, ()),
        )
        for row in tx.execute(select(ports))
    }


def _room(tx: Transaction) -> tuple[dict[str, Room], dict[str, Room]]:
    claims, offers = {}, {}
    for row in tx.execute(select(node_claims)):
        claims[row.node_id] = Room(
            vcpus=row.vcpus_claimed,
            memory_mib=row.memory_claimed_mib,
            disk_gib=row.disk_claimed_gib,
            instances=row.instances,
        )
        offers[row.node_id] = Room(
            vcpus=row.vcpus, memory_mib=row.memory_mib, disk_gib=row.disk_gib
        )
    return claims, offers


def _count(tx: Transaction, column: Any) -> dict[str, int]:
    return dict(tx.execute(select(column, func.count()).group_by(column)).all())  # type: ignore[arg-type]


def _outbox(tx: Transaction) -> tuple[OutboxEntry, ...]:
    columns = [c for c in outbox.c if c.name != "body"]
    return tuple(
        OutboxEntry(
            message_id=row.id,
            topic=row.topic,
            kind=row.kind,
            created_at=row.created_at,
            attempts=row.attempts,
            is_dead=row.dead_at is not None,
            error=row.error,
        )
        for row in tx.execute(select(*columns).where(outbox.c.sender == ""))
    )


def secrets_of(tx: Transaction, seal: Seal) -> dict[str, str]:
    """Return what must not be seen anywhere, by whose it is: secret keys and long user data.

    :raises ConfigError: a key cannot be opened.
    """
    found = {
        f"the secret of access key {row.id}": identity.open_secret(seal, row.id, row.secret_sealed)
        for row in tx.execute(select(access_keys.c.id, access_keys.c.secret_sealed))
    }
    query = select(instances.c.id, instances.c.user_data_base64).where(
        func.length(instances.c.user_data_base64) >= 24
    )
    for row in tx.execute(query):
        found[f"the user data of {row.id}"] = row.user_data_base64
    return found


def texts(tx: Transaction) -> dict[str, str]:
    """Return the texts of the store that people and queues see, by where they are."""
    found = {f"message {row.id}": _text(row.body) + row.error for row in tx.execute(select(outbox))}
    found |= {
        f"the reason of {row.id}": row.reason_message
        for row in tx.execute(select(instances.c.id, instances.c.reason_message))
    }
    found |= {
        f"timeline entry {row.id}": row.detail + _text(row.causes)
        for row in tx.execute(select(timeline.c.id, timeline.c.detail, timeline.c.causes))
    }
    found |= {
        f"decision {row.id}": _text(row.body)
        for row in tx.execute(select(decisions.c.id, decisions.c.body))
    }
    return found


def _text(body: bytes | None) -> str:
    return body.decode(errors="replace") if body else ""
