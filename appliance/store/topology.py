"""VPCs and networks as everybody sees them: they belong to nobody, and to each who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, ScalarSelect, func, literal, select, tuple_

from appliance.model import NetworkSpec
from appliance.store import Transaction, filters, tags
from appliance.store import networks as network_rows
from appliance.store.filters import Filter
from appliance.store.schema import addresses, networks, vpcs

AVAILABLE = "available"
DHCP_OPTIONS = "default"
"""EC2's word for a VPC that has no options of its own."""


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who looks, and from where.

    :param zone: the zone that a network without one is shown in.
    :param quarantine_s: seconds after which a freed address is taken again in any case.
    """

    project_id: str
    region: str
    zone: str
    quarantine_s: float


@dataclass(frozen=True, kw_only=True)
class Vpc:
    """A VPC with the viewer's tags."""

    vpc_id: str
    cidr: str
    is_default: bool
    tags: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A network with the viewer's tags, and how many of its addresses can be taken now."""

    network_id: str
    vpc_id: str
    cidr: str
    zone: str
    is_default: bool
    free_addresses: int
    tags: Sequence[tuple[str, str]]


def association_id(vpc_id: str) -> str:
    """Return the id of the tie between a VPC and its one range."""
    return vpc_id.replace("vpc-", "vpc-cidr-assoc-")


def subnet_arn(viewer: Viewer, network_id: str) -> str:
    """Return the name of a network that is unique over all of EC2."""
    return f"arn:aws:ec2:{viewer.region}:{viewer.project_id}:subnet/{network_id}"


def _vpc_rules(viewer: Viewer) -> dict[str, filters.Rule]:
    cidr, is_default = filters.text(vpcs.c.cidr), filters.flag(vpcs.c.is_default)
    return {
        "cidr": cidr,
        "cidr-block": cidr,
        "cidr-block-association.association-id": filters.text(
            func.replace(vpcs.c.id, "vpc-", "vpc-cidr-assoc-")
        ),
        "cidr-block-association.cidr-block": cidr,
        "cidr-block-association.state": filters.constant("associated"),
        "dhcp-options-id": filters.constant(DHCP_OPTIONS),
        "dhcpOptionsId": filters.constant(DHCP_OPTIONS),
        "ipv6-cidr-block-association.association-id": filters.nothing,
        "ipv6-cidr-block-association.ipv6-cidr-block": filters.nothing,
        "ipv6-cidr-block-association.ipv6-pool": filters.nothing,
        "ipv6-cidr-block-association.state": filters.nothing,
        "is-default": is_default,
        "isDefault": is_default,
        "owner-id": filters.constant(viewer.project_id),
        "state": filters.constant(AVAILABLE),
        "vpc-id": filters.text(vpcs.c.id),
        "vpcId": filters.text(vpcs.c.id),
    }


def _of_spec(value_of: Callable[[NetworkSpec], str]) -> filters.Rule:
    """Return the rule for what only the body of a network says; there are few networks."""

    def rule(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
        fitting = []
        for body in tx.execute(select(networks.c.body)).scalars():
            spec = msgspec.json.decode(body, type=NetworkSpec)
            if filters.fits(value_of(spec), values):
                fitting.append(spec.network_id)
        return networks.c.id.in_(fitting)

    return rule


def _free_addresses(now: float, quarantine_s: float) -> ScalarSelect[int]:
    return (
        select(func.count())
        .where(
            addresses.c.network_id == networks.c.id,
            network_rows.is_free(addresses, networks.c.id, now - quarantine_s),
        )
        .scalar_subquery()
    )


def _subnet_rules(viewer: Viewer) -> dict[str, filters.Rule]:
    zone = filters.text(_zone(viewer))
    cidr = _of_spec(lambda spec: spec.cidr)
    is_default = filters.flag(networks.c.is_default)

    def free(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
        return filters.number(_free_addresses(tx.now, viewer.quarantine_s))(tx, values)

    return {
        "availability-zone": zone,
        "availability-zone-id": zone,
        "availabilityZone": zone,
        "availabilityZoneId": zone,
        "available-ip-address-count": free,
        "cidr": cidr,
        "cidr-block": cidr,
        "cidrBlock": cidr,
        "customer-owned-ipv4-pool": filters.nothing,
        "default-for-az": is_default,
        "defaultForAz": is_default,
        "enable-dns64": filters.constant("false"),
        "enable-lni-at-device-index": filters.nothing,
        "ipv6-cidr-block-association.association-id": filters.nothing,
        "ipv6-cidr-block-association.ipv6-cidr-block": filters.nothing,
        "ipv6-cidr-block-association.state": filters.nothing,
        "ipv6-native": filters.constant("false"),
        "map-customer-owned-ip-on-launch": filters.constant("false"),
        "map-public-ip-on-launch": filters.constant("false"),
        "outpost-arn": filters.nothing,
        "owner-id": filters.constant(viewer.project_id),
        "private-dns-name-options-on-launch.enable-resource-name-dns-a-record": filters.constant(
            "false"
        ),
        "private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record": filters.constant(
            "false"
        ),
        "private-dns-name-options-on-launch.hostname-type": filters.constant("ip-name"),
        "state": filters.constant(AVAILABLE),
        "subnet-arn": filters.text(literal(subnet_arn(viewer, "")) + networks.c.id),
        "subnet-id": filters.text(networks.c.id),
        "subnetId": filters.text(networks.c.id),
        "vpc-id": filters.text(networks.c.vpc_id),
        "vpcId": filters.text(networks.c.vpc_id),
    }


def _zone(viewer: Viewer) -> ColumnElement[str]:
    return func.coalesce(func.nullif(networks.c.zone, ""), literal(viewer.zone))


_ANYBODY = Viewer(project_id="", region="", zone="", quarantine_s=0.0)
VPC_FILTERS = frozenset(_vpc_rules(_ANYBODY))
SUBNET_FILTERS = frozenset(_subnet_rules(_ANYBODY))


def list_vpcs(
    tx: Transaction,
    viewer: Viewer,
    *,
    ids: Sequence[str] = (),
    wanted: Sequence[Filter] = (),
    after: str = "",
    limit: int | None = None,
) -> list[Vpc]:
    """Return VPCs by id, from behind ``after`` on.

    :raises InputError: a filter is not known.
    """
    tagged = tags.shared_column(vpcs.c.id, viewer.project_id)
    query = select(vpcs.c.id, vpcs.c.cidr, vpcs.c.is_default).where(
        vpcs.c.id > after, *filters.conditions(tx, _vpc_rules(viewer), wanted, tagged)
    )
    if ids:
        query = query.where(vpcs.c.id.in_(ids))
    rows: Sequence[Any] = tx.execute(query.order_by(vpcs.c.id).limit(limit)).all()
    found_tags = tags.of_shared(tx, viewer.project_id, [row.id for row in rows])
    return [
        Vpc(
            vpc_id=row.id,
            cidr=row.cidr,
            is_default=row.is_default,
            tags=found_tags.get(row.id, ()),
        )
        for row in rows
    ]


def list_subnets(
    tx: Transaction,
    viewer: Viewer,
    *,
    ids: Sequence[str] = (),
    wanted: Sequence[Filter] = (),
    after: Sequence[str] = (),
    limit: int | None = None,
) -> list[Subnet]:
    """Return networks by zone, from behind ``after`` (zone, id) on.

    :raises InputError: a filter is not known.
    """
    zone = _zone(viewer)
    tagged = tags.shared_column(networks.c.id, viewer.project_id)
    query = select(
        networks.c.id,
        networks.c.body,
        networks.c.is_default,
        zone.label("zone"),
        _free_addresses(tx.now, viewer.quarantine_s).label("free"),
    ).where(*filters.conditions(tx, _subnet_rules(viewer), wanted, tagged))
    if ids:
        query = query.where(networks.c.id.in_(ids))
    if after:
        query = query.where(tuple_(zone, networks.c.id) > tuple_(*after))
    rows: Sequence[Any] = tx.execute(query.order_by(zone, networks.c.id).limit(limit)).all()
    found_tags = tags.of_shared(tx, viewer.project_id, [row.id for row in rows])
    return [_subnet(row, found_tags) for row in rows]


def _subnet(row: Any, found_tags: Mapping[str, Sequence[tuple[str, str]]]) -> Subnet:
    spec = msgspec.json.decode(row.body, type=NetworkSpec)
    return Subnet(
        network_id=row.id,
        vpc_id=spec.vpc_id,
        cidr=spec.cidr,
        zone=row.zone,
        is_default=row.is_default,
        free_addresses=row.free,
        tags=found_tags.get(row.id, ()),
    )


def known_vpcs(tx: Transaction, ids: Iterable[str]) -> set[str]:
    """Return those of the ids that are VPCs."""
    return set(tx.execute(select(vpcs.c.id).where(vpcs.c.id.in_(list(ids)))).scalars())


def known_subnets(tx: Transaction, ids: Iterable[str]) -> set[str]:
    """Return those of the ids that are networks."""
    return set(tx.execute(select(networks.c.id).where(networks.c.id.in_(list(ids)))).scalars())
