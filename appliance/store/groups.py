"""Security groups and their rules. Whoever changes rules tells the networks of the VPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from appliance.store import Transaction, filters, group_filters, policy, tags
from appliance.store.filters import Filter
from appliance.store.schema import instances, port_groups, ports, quotas
from appliance.store.schema import security_group_rules as rules_table
from appliance.store.schema import security_groups as groups_table

DEFAULT_NAME = "default"

ALL_PROTOCOLS = -1
ANY_PORT = -1


@dataclass(frozen=True, kw_only=True)
class Group:
    """A security group without its rules."""

    group_id: str
    project_id: str
    vpc_id: str
    name: str
    description: str
    created_at: float


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a rule lets through, in one form only: the form that decides whether two are equal."""

    protocol: int
    from_port: int = ANY_PORT
    to_port: int = ANY_PORT
    cidr: str = ""
    source_group_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of a group."""

    rule_id: str
    group_id: str
    is_egress: bool
    match: Match
    description: str


ALLOW_ALL_EGRESS = Match(protocol=ALL_PROTOCOLS, cidr="0.0.0.0/0")


def _group(row: object) -> Group:
    values = row._mapping  # type: ignore[attr-defined]
    return Group(
        group_id=values["id"],
        project_id=values["project_id"],
        vpc_id=values["vpc_id"],
        name=values["name"],
        description=values["description"],
        created_at=values["created_at"],
    )


def _rule(row: object) -> Rule:
    values = row._mapping  # type: ignore[attr-defined]
    return Rule(
        rule_id=values["id"],
        group_id=values["group_id"],
        is_egress=values["is_egress"],
        match=Match(
            protocol=values["protocol"],
            from_port=values["from_port"],
            to_port=values["to_port"],
            cidr=values["cidr"],
            source_group_id=values["source_group_id"],
        ),
        description=values["description"],
    )


def create(tx: Transaction, project_id: str, vpc_id: str, name: str, description: str) -> Group:
    """Make a group that lets everything out and nothing in; its name must be free."""
    group = Group(
        group_id=tx.world.ids.ec2("sg"),
        project_id=project_id,
        vpc_id=vpc_id,
        name=name,
        description=description,
        created_at=tx.now,
    )
    tx.execute(
        insert(groups_table).values(
            id=group.group_id,
            project_id=project_id,
            vpc_id=vpc_id,
            name=name,
            description=description,
            created_at=tx.now,
        )
    )
    _insert_rules(tx, group.group_id, True, [(ALLOW_ALL_EGRESS, "")])
    return group


_DEFAULT = select(groups_table).where(
    groups_table.c.project_id == bindparam("project_id"),
    groups_table.c.vpc_id == bindparam("vpc_id"),
    groups_table.c.name == DEFAULT_NAME,
)


def default(tx: Transaction, project_id: str, vpc_id: str) -> Group:
    """Return the default group, made where it is missing: members reach each other.

    It counts against the quota, but a full quota does not keep it from being made.
    """
    row = tx.execute(_DEFAULT, {"project_id": project_id, "vpc_id": vpc_id}).first()
    if row:
        return _group(row)
    group = create(tx, project_id, vpc_id, DEFAULT_NAME, "default VPC security group")
    own = Match(protocol=ALL_PROTOCOLS, source_group_id=group.group_id)
    _insert_rules(tx, group.group_id, False, [(own, "")])
    tx.execute(
        update(quotas)
        .where(quotas.c.project_id == project_id, quotas.c.resource == "security_groups")
        .values(used=quotas.c.used + 1)
    )
    return group


def find(
    tx: Transaction,
    project_id: str,
    *,
    ids: Iterable[str] = (),
    names: Iterable[str] = (),
    vpc_id: str = "",
) -> list[Group]:
    """Return groups by id or by name; missing ones are left out. Names mean those of one VPC."""
    named: ColumnElement[bool] = groups_table.c.name.in_(list(names))
    if vpc_id:
        named = and_(named, groups_table.c.vpc_id == vpc_id)
    query = select(groups_table).where(
        groups_table.c.project_id == project_id,
        or_(groups_table.c.id.in_(list(ids)), named),
    )
    return [_group(row) for row in tx.execute(query)]


def check_filters(tx: Transaction, wanted: Sequence[Filter]) -> None:
    """Refuse filters that :func:`list_page` would refuse.

    :raises InputError: a filter is not known.
    """
    filters.conditions(tx, group_filters.FILTERS, wanted, groups_table.c.id)


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    wanted: Sequence[Filter] = (),
    ids: Sequence[str] = (),
    names: Sequence[str] = (),
    after: Sequence[str] = (),
    limit: int | None = None,
) -> list[Group]:
    """Return a project's groups by name, from behind ``after`` (name, id) on.

    :param ids: only these; with ``names``, groups that are one or the other.
    :raises InputError: a filter is not known.
    """
    query = select(groups_table).where(
        groups_table.c.project_id == project_id,
        *filters.conditions(tx, group_filters.FILTERS, wanted, groups_table.c.id),
    )
    if ids or names:
        query = query.where(groups_table.c.id.in_(ids) | groups_table.c.name.in_(names))
    if after:
        query = query.where(tuple_(groups_table.c.name, groups_table.c.id) > tuple_(*after))
    query = query.order_by(groups_table.c.name, groups_table.c.id).limit(limit)
    return [_group(row) for row in tx.execute(query)]


def rules_of(tx: Transaction, group_ids: Iterable[str]) -> dict[str, list[Rule]]:
    """Return the rules of groups, oldest first, those of one request by what they say."""
    query = (
        select(rules_table)
        .where(rules_table.c.group_id.in_(list(group_ids)))
        .order_by(
            rules_table.c.created_at,
            rules_table.c.protocol,
            rules_table.c.from_port,
            rules_table.c.cidr,
            rules_table.c.id,
        )
    )
    found: dict[str, list[Rule]] = {}
    for row in tx.execute(query):
        found.setdefault(row.group_id, []).append(_rule(row))
    return found


def add_rules(
    tx: Transaction, group: Group, *, is_egress: bool, rules: Sequence[tuple[Match, str]]
) -> list[Rule]:
    """Add rules with their descriptions; none of them may be there."""
    added = _insert_rules(tx, group.group_id, is_egress, rules)
    policy.group_changed(tx, group.vpc_id, group.group_id)
    return added


def _insert_rules(
    tx: Transaction, group_id: str, is_egress: bool, rules: Sequence[tuple[Match, str]]
) -> list[Rule]:
    added = [
        Rule(
            rule_id=tx.world.ids.ec2("sgr"),
            group_id=group_id,
            is_egress=is_egress,
            match=match,
            description=description,
        )
        for match, description in rules
    ]
    rows = [
        {
            "id": rule.rule_id,
            "group_id": group_id,
            "is_egress": is_egress,
            "protocol": rule.match.protocol,
            "from_port": rule.match.from_port,
            "to_port": rule.match.to_port,
            "cidr": rule.match.cidr,
            "source_group_id": rule.match.source_group_id,
            "description": rule.description,
            "created_at": tx.now,
        }
        for rule in added
    ]
    tx.execute(insert(rules_table), rows)
    return added


def list_rules(
    tx: Transaction,
    project_id: str,
    *,
    ids: Sequence[str] = (),
    wanted: Sequence[Filter] = (),
    after: str = "",
    limit: int | None = None,
) -> list[Rule]:
    """Return the rules of all groups of a project by id, from behind ``after`` on.

    :raises InputError: a filter is not known.
    """
    query = (
        select(rules_table)
        .join(groups_table, groups_table.c.id == rules_table.c.group_id)
        .where(
            groups_table.c.project_id == project_id,
            rules_table.c.id > after,
            *filters.conditions(tx, group_filters.RULE_FILTERS, wanted, rules_table.c.id),
        )
    )
    if ids:
        query = query.where(rules_table.c.id.in_(ids))
    return [_rule(row) for row in tx.execute(query.order_by(rules_table.c.id).limit(limit))]


def describe_rules(tx: Transaction, descriptions: Mapping[str, str]) -> None:
    """Write what owners say of rules, by the rules' ids; what the rules do stays the same."""
    statement = update(rules_table).where(rules_table.c.id == bindparam("rule_id"))
    rows = [{"rule_id": each, "text": text} for each, text in descriptions.items()]
    tx.execute(statement.values(description=bindparam("text")), rows)


def replace_rules(tx: Transaction, group: Group, rules: Sequence[Rule]) -> None:
    """Let rules of a group say something else, under their ids; none may become like another."""
    # All are moved out of the way first: two may change places.
    ids = [rule.rule_id for rule in rules]
    tx.execute(
        update(rules_table)
        .where(rules_table.c.group_id == group.group_id, rules_table.c.id.in_(ids))
        .values(cidr=rules_table.c.id)
    )
    statement = update(rules_table).where(rules_table.c.id == bindparam("rule_id"))
    tx.execute(
        statement.values(
            protocol=bindparam("new_protocol"),
            from_port=bindparam("new_from_port"),
            to_port=bindparam("new_to_port"),
            cidr=bindparam("new_cidr"),
            source_group_id=bindparam("new_source"),
            description=bindparam("new_description"),
        ),
        [
            {
                "rule_id": rule.rule_id,
                "new_protocol": rule.match.protocol,
                "new_from_port": rule.match.from_port,
                "new_to_port": rule.match.to_port,
                "new_cidr": rule.match.cidr,
                "new_source": rule.match.source_group_id,
                "new_description": rule.description,
            }
            for rule in rules
        ],
    )
    policy.group_changed(tx, group.vpc_id, group.group_id)


def remove_rules(tx: Transaction, group: Group, rule_ids: Sequence[str]) -> None:
    """Remove rules of a group."""
    tags.clear(tx, rule_ids)
    tx.execute(
        delete(rules_table).where(
            rules_table.c.group_id == group.group_id, rules_table.c.id.in_(rule_ids)
        )
    )
    policy.group_changed(tx, group.vpc_id, group.group_id)


def is_in_use(tx: Transaction, group: Group) -> bool:
    """Say whether an instance is in the group, or another group's rule names it."""
    member = (
        select(port_groups.c.port_id)
        .join(ports, ports.c.id == port_groups.c.port_id)
        .join(instances, instances.c.id == ports.c.instance_id)
        .where(port_groups.c.group_id == group.group_id, instances.c.state != "terminated")
    )
    source = select(rules_table.c.id).where(
        rules_table.c.source_group_id == group.group_id, rules_table.c.group_id != group.group_id
    )
    return any(tx.execute(query.limit(1)).first() for query in (member, source))


def remove(tx: Transaction, group: Group) -> None:
    """Delete a group that is not in use, with its rules and tags."""
    rules = delete(rules_table).where(rules_table.c.group_id == group.group_id)
    removed = tx.execute(rules.returning(rules_table.c.id)).scalars().all()
    tags.clear(tx, [group.group_id, *removed])
    # What is left here are ports of terminated instances.
    tx.execute(delete(port_groups).where(port_groups.c.group_id == group.group_id))
    tx.execute(delete(groups_table).where(groups_table.c.id == group.group_id))
    policy.group_changed(tx, group.vpc_id, group.group_id)
