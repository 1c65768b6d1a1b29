"""Security groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import (
    check_ids,
    filters_of,
    page_of,
    place_of,
    tag_set,
)
from appliance.api.ec2.permissions import permission_set
from appliance.api.ec2.tagging import tags_of
from appliance.store import Transaction, group_filters, groups, networks, quotas, tags
from appliance.store.filters import TAGS, Filter
from appliance.store.groups import DEFAULT_NAME, Group, Rule

_ALLOWED = re.compile(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}", re.ASCII)
_SAID = "a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*"


@action()
def create_security_group(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Make a group that lets nothing in and everything out."""
    name = _checked_name(params["GroupName"])
    description = _checked_description(params["Description"])
    wanted_tags = tags_of(params, ["security-group"]).get("security-group", {})

    def change(tx: Transaction) -> Group:
        vpc_id = vpc_of(tx, params.get("VpcId", ""))
        groups.default(tx, call.project_id, vpc_id)
        if groups.find(tx, call.project_id, names=[name], vpc_id=vpc_id):
            raise errors.group_duplicate(name, vpc_id)
        if not quotas.take(tx, call.project_id, "security_groups", 1):
            raise errors.Ec2Error(
                "SecurityGroupLimitExceeded",
                "The maximum number of security groups has been reached.",
            )
        made = groups.create(tx, call.project_id, vpc_id, name, description)
        tags.add(tx, call.project_id, "security-group", [made.group_id], wanted_tags)
        return made

    made = call.change(change, lambda group: group.group_id)
    return {
        "GroupId": made.group_id,
        "Tags": tag_set(sorted(wanted_tags.items())),
        "SecurityGroupArn": _arn(call, made.group_id),
    }


@action(filters=(*group_filters.FILTERS, *TAGS), page=Page())
def describe_security_groups(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return groups with their rules; the default group of the project is always among them."""
    ids = check_ids(params.get("GroupIds", ()), "sg", "InvalidGroupId")
    names = list(dict.fromkeys(params.get("GroupNames", ())))
    size = params.get("MaxResults")
    wanted = filters_of(params)
    place = [str(each) for each in place_of(params, str, str)]
    _make_default(call, wanted)

    def read(
        tx: Transaction,
    ) -> tuple[list[Group], dict[str, list[Rule]], dict[str, list[tuple[str, str]]]]:
        if ids or names:
            _all_exist(groups.find(tx, call.project_id, ids=ids, names=names), ids, names)
        found = groups.list_page(
            tx,
            call.project_id,
            wanted=wanted,
            ids=ids,
            names=names,
            after=place,
            limit=None if size is None else size + 1,
        )
        group_ids = [group.group_id for group in found]
        return found, groups.rules_of(tx, group_ids), tags.of(tx, group_ids)

    groups_found, rules, found_tags = call.read(read)
    found, reply = page_of(groups_found, size, lambda group: (group.name, group.group_id))
    reply["SecurityGroups"] = [
        _description(
            call,
            group,
            rules.get(group.group_id, []),
            found_tags.get(group.group_id, []),
        )
        for group in found
    ]
    return reply


@action()
def delete_security_group(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Delete a group that no instance and no other group's rule uses."""

    def change(tx: Transaction) -> Group:
        group = find_group(tx, call, params)
        if group.name == DEFAULT_NAME:
            raise errors.default_group_kept(group.group_id)
        if groups.is_in_use(tx, group):
            if params.get("GroupId"):
                raise errors.dependency_violation(group.group_id)
            raise errors.group_in_use(group.name)
        groups.remove(tx, group)
        quotas.give_back(tx, call.project_id, "security_groups", 1)
        return group

    group = call.change(change, lambda group: group.group_id)
    return {"Return": True, "GroupId": group.group_id}


def find_group(tx: Transaction, call: Call, params: Mapping[str, Any]) -> Group:
    """Return the group that GroupId or GroupName means; names are those of the default VPC.

    :raises Ec2Error: neither is given, the id is malformed, or there is no such group.
    """
    group_id, name = params.get("GroupId", ""), params.get("GroupName", "")
    if group_id:
        check_ids([group_id], "sg", "InvalidGroupId")
        found = groups.find(tx, call.project_id, ids=[group_id])
    elif name == DEFAULT_NAME:
        return groups.default(tx, call.project_id, vpc_of(tx, ""))
    elif name:
        found = groups.find(tx, call.project_id, names=[name], vpc_id=vpc_of(tx, ""))
    else:
        raise errors.missing_one_of("GroupId", "GroupName")
    if not found:
        raise errors.groups_not_found([group_id or name])
    return found[0]


def vpc_of(tx: Transaction, vpc_id: str) -> str:
    """Return the VPC asked for, the default one when none is.

    :raises Ec2Error: there is no such VPC.
    """
    default = networks.default_vpc(tx)
    if vpc_id:
        check_ids([vpc_id], "vpc", "InvalidVpcID")
        if vpc_id != default:
            raise errors.vpcs_not_found([vpc_id])
    if default is None:
        raise errors.Ec2Error("VPCIdNotSpecified", "No default VPC for this user")
    return default


def _make_default(call: Call, wanted: Sequence[Filter]) -> None:
    """Make the project's default group unless it is there; a reader's list shows it, too.

    :raises InputError: a filter of the list is not known; nothing is made.
    """

    def is_missing(tx: Transaction) -> bool:
        groups.check_filters(tx, wanted)
        return not groups.find(tx, call.project_id, names=[DEFAULT_NAME], vpc_id=vpc_of(tx, ""))

    if call.read(is_missing):
        call.store.transaction(lambda tx: groups.default(tx, call.project_id, vpc_of(tx, "")))


def _checked_name(name: str) -> str:
    if not _ALLOWED.fullmatch(name) or name != name.strip():
        raise errors.invalid_parameter_value(
            "GroupName", name, f"Valid names are up to 255 characters of {_SAID}"
        )
    if name.lower().startswith("sg-"):
        raise errors.invalid_parameter_value(
            "GroupName", name, "Group names may not be in the format sg-*."
        )
    if name == DEFAULT_NAME:
        raise errors.Ec2Error(
            "InvalidParameterValue", "Cannot use reserved security group name: default"
        )
    return name


def _checked_description(description: str) -> str:
    if not _ALLOWED.fullmatch(description):
        raise errors.invalid_parameter_value(
            "GroupDescription",
            description,
            f"Valid descriptions are strings less than 256 characters from the set {_SAID}",
        )
    return description


def _all_exist(found: Sequence[Group], ids: Sequence[str], names: Sequence[str]) -> None:
    known = {group.group_id for group in found} | {group.name for group in found}
    missing = [each for each in (*ids, *names) if each not in known]
    if missing:
        raise errors.groups_not_found(missing)


def _description(
    call: Call, group: Group, rules: Sequence[Rule], tag_pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "GroupId": group.group_id,
        "GroupName": group.name,
        "Description": group.description,
        "OwnerId": group.project_id,
        "VpcId": group.vpc_id,
        "SecurityGroupArn": _arn(call, group.group_id),
        "IpPermissions": permission_set(
            [rule for rule in rules if not rule.is_egress], group.project_id
        ),
        "IpPermissionsEgress": permission_set(
            [rule for rule in rules if rule.is_egress], group.project_id
        ),
        "Tags": tag_set(tag_pairs),
    }


def _arn(call: Call, group_id: str) -> str:
    return f"arn:aws:ec2:{call.parts.region}:{call.project_id}:security-group/{group_id}"
