"""The cluster as its operator sees it: over all projects, for the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from sqlalchemy import func, select

from appliance.errors import InputError, NotFound
from appliance.model import InstanceState, NetworkSpec
from appliance.store import Transaction, groups
from appliance.store.schema import (
    addresses,
    decisions,
    instances,
    networks,
    nodes,
    outbox,
    port_groups,
    ports,
    projects,
    security_groups,
    tags,
    timeline,
)


@dataclass(frozen=True, kw_only=True)
class InstanceLine:
    """An instance in one line."""

    instance_id: str
    name: str
    project_name: str
    instance_type: str
    image_id: str
    state: str
    desired: str
    addresses: tuple[str, ...]
    node_name: str
    epoch: int
    key_name: str
    reason_code: str
    reason_message: str
    created_at: float
    terminated_at: float | None


def list_instances(
    tx: Transaction, *, terminated_s: float = 0.0, ids: Iterable[str] = ()
) -> list[InstanceLine]:
    """Return the instances of all projects, oldest first.

    :param terminated_s: seconds for which terminated instances stay listed.
    :param ids: only these, terminated or not; all when empty.
    """
    query = (
        select(instances, projects.c.name.label("project_name"), nodes.c.name.label("node_name"))
        .outerjoin(projects, projects.c.id == instances.c.project_id)
        .outerjoin(nodes, nodes.c.id == instances.c.node_id)
        .order_by(instances.c.created_at, instances.c.id)
    )
    wanted = list(ids)
    if wanted:
        query = query.where(instances.c.id.in_(wanted))
    else:
        query = query.where(
            (instances.c.state != InstanceState.TERMINATED.value)
            | (instances.c.terminated_at > tx.now - terminated_s)
        )
    owned = _addresses_by_instance(tx)
    names = _names(tx)
    return [
        InstanceLine(
            instance_id=row.id,
            name=names.get(row.id, ""),
            project_name=row.project_name or row.project_id,
            instance_type=row.instance_type,
            image_id=row.image_id,
            state=row.state,
            desired=row.desired,
            addresses=tuple(owned.get(row.id, ())),
            node_name=row.node_name or "",
            epoch=row.epoch,
            key_name=row.key_name or "",
            reason_code=row.reason_code,
            reason_message=row.reason_message,
            created_at=row.created_at,
            terminated_at=row.terminated_at,
        )
        for row in tx.execute(query)
    ]


def _addresses_by_instance(tx: Transaction) -> dict[str, list[str]]:
    query = (
        select(ports.c.instance_id, addresses.c.address)
        .join(addresses, addresses.c.port_id == ports.c.id)
        .order_by(ports.c.device_index, addresses.c.position)
    )
    found: dict[str, list[str]] = {}
    for row in tx.execute(query):
        found.setdefault(row.instance_id, []).append(row.address)
    return found


def _names(tx: Transaction) -> dict[str, str]:
    query = select(tags.c.resource_id, tags.c.value).where(tags.c.key == "Name")
    return {row.resource_id: row.value for row in tx.execute(query)}


def match_instance(tx: Transaction, text: str) -> str:
    """Return the id of the instance that an id, or the beginning of one, means.

    Instances that are no longer listed count while their timeline is kept.

    :raises NotFound: there is none.
    :raises InputError: there are several.
    """
    found: set[str] = set()
    for column in (instances.c.id, timeline.c.instance_id, decisions.c.instance_id):
        query = select(column).where(column.startswith(text, autoescape=True)).distinct().limit(10)
        found.update(tx.execute(query).scalars())
    if text in found:
        return text
    if not found or not text:
        raise NotFound(f"There is no instance {text!r}.", hint="`anynode instances` lists them.")
    if len(found) > 1:
        raise InputError(f"{text!r} may be {', '.join(sorted(found))}.", hint="Say more of the id.")
    return found.pop()


def count_states(tx: Transaction) -> dict[str, int]:
    """Return how many instances there are by state."""
    query = select(instances.c.state, func.count().label("number")).group_by(instances.c.state)
    return {row.state: int(row.number) for row in tx.execute(query)}


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """Messages that await their handler, and those that were given up."""

    pending: int
    dead: int
    oldest_pending_at: float | None


def queue_depth(tx: Transaction) -> QueueDepth:
    """Return how full the outbox is."""
    oldest = func.min(outbox.c.created_at).label("oldest")
    query = select(func.count().label("number"), oldest).where(outbox.c.dead_at.is_(None))
    row = tx.execute(query).one()
    dead = tx.execute(select(func.count()).where(outbox.c.dead_at.is_not(None))).scalar_one()
    return QueueDepth(pending=int(row.number), dead=int(dead), oldest_pending_at=row.oldest)


def node_names(tx: Transaction) -> dict[str, str]:
    """Return the names of all nodes that ever joined, by id."""
    return {row.id: row.name for row in tx.execute(select(nodes.c.id, nodes.c.name))}


@dataclass(frozen=True, kw_only=True)
class NetworkLine:
    """A network and the revision of its policy."""

    network: NetworkSpec
    revision: int


def list_networks(tx: Transaction) -> list[NetworkLine]:
    """Return all networks with the revisions of their policies."""
    query = select(networks.c.body, networks.c.policy_revision).order_by(networks.c.created_at)
    return [
        NetworkLine(
            network=msgspec.json.decode(row.body, type=NetworkSpec), revision=row.policy_revision
        )
        for row in tx.execute(query)
    ]


@dataclass(frozen=True, kw_only=True)
class GroupLine:
    """A security group with its rules and members, the latter as (instance id, address)."""

    group_id: str
    name: str
    project_name: str
    vpc_id: str
    rules: tuple[groups.Rule, ...]
    members: tuple[tuple[str, str], ...]


def list_groups(tx: Transaction, instance_id: str = "") -> list[GroupLine]:
    """Return the security groups of all projects, or those of one instance."""
    query = (
        select(security_groups, projects.c.name.label("project_name"))
        .outerjoin(projects, projects.c.id == security_groups.c.project_id)
        .order_by(projects.c.name, security_groups.c.name)
    )
    if instance_id:
        of_instance = (
            select(port_groups.c.group_id)
            .join(ports, ports.c.id == port_groups.c.port_id)
            .where(ports.c.instance_id == instance_id)
        )
        query = query.where(security_groups.c.id.in_(of_instance))
    rows = tx.execute(query).all()
    rules = groups.rules_of(tx, [row.id for row in rows])
    members = _members(tx)
    return [
        GroupLine(
            group_id=row.id,
            name=row.name,
            project_name=row.project_name or row.project_id,
            vpc_id=row.vpc_id,
            rules=tuple(rules.get(row.id, ())),
            members=tuple(members.get(row.id, ())),
        )
        for row in rows
    ]


def _members(tx: Transaction) -> dict[str, list[tuple[str, str]]]:
    query = (
        select(port_groups.c.group_id, ports.c.instance_id, addresses.c.address)
        .join(ports, ports.c.id == port_groups.c.port_id)
        .outerjoin(addresses, addresses.c.port_id == ports.c.id)
        .order_by(ports.c.created_at, addresses.c.position)
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for row in tx.execute(query):
        found.setdefault(row.group_id, []).append((row.instance_id, row.address or ""))
    return found
