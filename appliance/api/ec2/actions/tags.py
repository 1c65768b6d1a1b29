"""Tags of whatever a project can see."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import ID_DIGITS, filters_of, page_of, place_of
from appliance.api.ec2.tagging import checked_key, checked_tags
from appliance.store import Transaction, taggable, tags
from appliance.store.tags import Tag

MOST_RESOURCES = 1000

_ID = re.compile(rf"({'|'.join(taggable.RESOURCE_TYPES)})-{ID_DIGITS}")
_NOT_FOUND: Mapping[str, Callable[[Sequence[str]], errors.Ec2Error]] = {
    "image": errors.images_not_found,
    "instance": errors.instances_not_found,
    "key-pair": errors.key_pairs_not_found,
    "network-interface": errors.network_interfaces_not_found,
    "security-group": errors.groups_not_found,
    "security-group-rule": errors.group_rules_not_found,
    "subnet": errors.subnets_not_found,
    "volume": errors.volumes_not_found,
    "vpc": errors.vpcs_not_found,
}


@action()
def create_tags(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Tag resources of any kind; a tag of the same key gets the new value."""
    ids = _checked_ids(params["Resources"])
    wanted = checked_tags(params["Tags"])

    def change(tx: Transaction) -> None:
        if not tags.put(tx, call.project_id, _subjects(tx, call, ids), wanted):
            raise errors.tag_limit_exceeded()

    call.change(change, " ".join(ids))
    return {}


@action()
def delete_tags(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Take tags off resources: by key, by key and value, or all; a missing one is no error."""
    ids = _checked_ids(params["Resources"])
    wanted = [(checked_key(tag), tag.get("Value")) for tag in params.get("Tags", ())]

    def change(tx: Transaction) -> None:
        tags.remove(tx, list(_subjects(tx, call, ids)), wanted)

    call.change(change, " ".join(ids))
    return {}


@action(filters=tags.FILTERS, page=Page())
def describe_tags(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the tags of the project by resource."""
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[Tag]:
        return tags.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            wanted=filters_of(params),
            after=[str(each) for each in place_of(params, str, str)],
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda tag: (tag.subject, tag.key))
    reply["Tags"] = [
        {
            "ResourceId": tag.resource_id,
            "ResourceType": tag.resource_type,
            "Key": tag.key,
            "Value": tag.value,
        }
        for tag in found
    ]
    return reply


def _checked_ids(resource_ids: Sequence[str]) -> list[str]:
    for each in resource_ids:
        if not _ID.fullmatch(each):
            raise errors.resource_not_found(each)
    ids = list(dict.fromkeys(resource_ids))
    if len(ids) > MOST_RESOURCES:
        raise errors.invalid_parameter_value(
            "resourceId", f"{len(ids)} ids", f"It must be up to {MOST_RESOURCES}."
        )
    return ids


def _subjects(tx: Transaction, call: Call, ids: Sequence[str]) -> dict[str, str]:
    """Return what is to be tagged as subject → type.

    :raises Ec2Error: the project cannot see one of them.
    """
    terminated_s = call.parts.config.store.terminated_s
    found = taggable.find(tx, call.project_id, ids, terminated_s=terminated_s)
    missing = [each for each in ids if each not in found]
    if missing:
        kind = _kind(missing[0])
        raise _NOT_FOUND[kind]([each for each in missing if _kind(each) == kind])
    return dict(found.values())


def _kind(resource_id: str) -> str:
    return taggable.RESOURCE_TYPES[resource_id.partition("-")[0]]
