"""Tags as requests have them: in TagSpecification, and in CreateTags."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from appliance.api.ec2 import errors
from appliance.store.tags import MOST_TAGS

_LONGEST_KEY = 128
_LONGEST_VALUE = 256


def tags_of(params: Mapping[str, Any], allowed: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the tags of TagSpecification by resource type.

    :raises Ec2Error: a resource type that the action does not make, a bad or doubled key, too many.
    """
    found: dict[str, dict[str, str]] = {}
    for specification in params.get("TagSpecifications", ()):
        kind = specification.get("ResourceType", "")
        if not kind:
            raise errors.missing_parameter("TagSpecification.ResourceType")
        if kind not in allowed:
            raise errors.invalid_parameter_value(
                "TagSpecification.ResourceType", kind, "It is not a resource of this action."
            )
        if kind in found:
            raise errors.invalid_parameter_value(
                "TagSpecification.ResourceType", kind, "It is given twice."
            )
        found[kind] = checked_tags(specification.get("Tags", ()))
    return found


def checked_key(tag: Mapping[str, str]) -> str:
    """Return the key of a tag.

    :raises Ec2Error: it is missing, reserved or too long.
    """
    key = tag.get("Key", "")
    if not key:
        raise errors.missing_parameter("Tag.Key")
    if len(key) > _LONGEST_KEY:
        raise errors.invalid_parameter_value(
            "Tag.Key", key, f"Tag keys have up to {_LONGEST_KEY} characters."
        )
    if key.lower().startswith("aws:"):
        raise errors.invalid_parameter_value(
            "Tag.Key", key, "Tag keys starting with 'aws:' are reserved for internal use."
        )
    return key


def checked_tags(tags: Collection[Mapping[str, str]]) -> dict[str, str]:
    """Return tags as key → value.

    :raises Ec2Error: a key is missing, doubled, reserved or too long, or there are too many.
    """
    checked: dict[str, str] = {}
    for tag in tags:
        key, value = checked_key(tag), tag.get("Value", "")
        if len(value) > _LONGEST_VALUE:
            raise errors.invalid_parameter_value(
                "Tag.Value", value, f"Tag values have up to {_LONGEST_VALUE} characters."
            )
        if key in checked:
            raise errors.invalid_parameter_value("Tag.Key", key, "Duplicate tag key specified.")
        checked[key] = value
    if len(checked) > MOST_TAGS:
        raise errors.tag_limit_exceeded()
    return checked
