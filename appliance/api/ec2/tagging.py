"""Tags that come with the making of a resource."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from appliance.api.ec2 import errors

MOST_TAGS = 50
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
        found[kind] = _checked(specification.get("Tags", ()))
    return found


def _checked(tags: Collection[Mapping[str, str]]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value", "")
        if not key:
            raise errors.missing_parameter("Tag.Key")
        if len(key) > _LONGEST_KEY:
            raise errors.invalid_parameter_value("Tag.Key", key, "The key is too long.")
        if len(value) > _LONGEST_VALUE:
            raise errors.invalid_parameter_value("Tag.Value", value, "The value is too long.")
        if key.lower().startswith("aws:"):
            raise errors.invalid_parameter_value(
                "Tag.Key", key, "Tag keys starting with 'aws:' are reserved for internal use."
            )
        if key in checked:
            raise errors.invalid_parameter_value("Tag.Key", key, "Duplicate tag key specified.")
        checked[key] = value
    if len(checked) > MOST_TAGS:
        raise errors.Ec2Error(
            "TagLimitExceeded", "The maximum number of tags per resource has been reached."
        )
    return checked
