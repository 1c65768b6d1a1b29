"""Where instance types are on offer: all of them, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import Property, passes
from appliance.api.ec2.paging import filters_of, page_of, place_of
from appliance.store import zones

_REGION, _OUTPOST = "region", "outpost"


class _Offering(NamedTuple):
    location: str
    instance_type: str


FILTERS: Mapping[str, Property[_Offering]] = {
    "instance-type": lambda offering: [offering.instance_type],
    "location": lambda offering: [offering.location],
}
"""What offerings can be filtered by."""


@action(filters=FILTERS, page=Page())
def describe_instance_type_offerings(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the instance types of the region or of each zone; whether one fits, a launch says."""
    kind = params.get("LocationType", _REGION)
    size = params.get("MaxResults")
    if kind == _REGION:
        locations = [call.parts.region]
    elif kind == _OUTPOST:
        locations = []
    else:
        locations = sorted({call.parts.zone: True} | call.read(zones.list_all))
    wanted = filters_of(params)
    offered = [_Offering(place, name) for place in locations for name in sorted(call.parts.types)]
    after = place_of(params, str, str)
    chosen = [one for one in offered if one > after and passes(wanted, FILTERS, one)]
    found, reply = page_of(chosen, size, tuple)
    reply["InstanceTypeOfferings"] = [
        {"InstanceType": one.instance_type, "LocationType": kind, "Location": one.location}
        for one in found
    ]
    return reply
