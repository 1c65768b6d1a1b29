"""What security groups and their rules can be filtered by."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, String, and_, case, cast, select

from appliance.store import filters
from appliance.store.schema import security_group_rules as rules
from appliance.store.schema import security_groups as groups

PROTOCOL_NAMES: Mapping[int, str] = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}
"""The protocols that EC2 calls by a name; the others go by their number."""

_protocol = case(PROTOCOL_NAMES, value=rules.c.protocol, else_=cast(rules.c.protocol, String))
_is_v6 = rules.c.cidr.contains(":")
_has_source = rules.c.source_group_id != ""


def _with_rule(is_egress: bool, column: ColumnElement[str], *more: object) -> filters.Rule:
    """Return the rule for groups of which a rule fits."""
    return lambda tx, values: groups.c.id.in_(
        select(rules.c.group_id).where(
            and_(
                rules.c.is_egress.is_(is_egress),
                filters.matches(tx, column, values),
                *more,  # type: ignore[arg-type]
            )
        )
    )


def _with_number(is_egress: bool, column: ColumnElement[int]) -> filters.Rule:
    return lambda tx, values: groups.c.id.in_(
        select(rules.c.group_id).where(
            rules.c.is_egress.is_(is_egress), filters.number(column)(tx, values)
        )
    )


def _with_source_name(is_egress: bool) -> filters.Rule:
    source = groups.alias("source")
    return lambda tx, values: groups.c.id.in_(
        select(rules.c.group_id)
        .join(source, source.c.id == rules.c.source_group_id)
        .where(rules.c.is_egress.is_(is_egress), filters.matches(tx, source.c.name, values))
    )


def _of_rules(prefix: str, *, is_egress: bool) -> dict[str, filters.Rule]:
    named = {
        "cidr": _with_rule(is_egress, rules.c.cidr, ~_is_v6, rules.c.cidr != ""),
        "from-port": _with_number(is_egress, rules.c.from_port),
        "group-id": _with_rule(is_egress, rules.c.source_group_id, _has_source),
        "group-name": _with_source_name(is_egress),
        "ipv6-cidr": _with_rule(is_egress, rules.c.cidr, _is_v6),
        "prefix-list-id": filters.nothing,
        "protocol": _with_rule(is_egress, _protocol),
        "to-port": _with_number(is_egress, rules.c.to_port),
        # Rules name groups of their own project only.
        "user-id": _with_rule(is_egress, groups.c.project_id, _has_source),
    }
    return {f"{prefix}.{name}": rule for name, rule in named.items()}


FILTERS: Mapping[str, filters.Rule] = {
    "description": filters.text(groups.c.description),
    "group-id": filters.text(groups.c.id),
    "group-name": filters.text(groups.c.name),
    "owner-id": filters.text(groups.c.project_id),
    "vpc-id": filters.text(groups.c.vpc_id),
    **_of_rules("ip-permission", is_egress=False),
    **_of_rules("egress.ip-permission", is_egress=True),
}
"""What groups can be filtered by, tags aside."""

RULE_FILTERS: Mapping[str, filters.Rule] = {
    "group-id": filters.text(rules.c.group_id),
    "security-group-rule-id": filters.text(rules.c.id),
}
"""What rules can be filtered by, tags aside."""
