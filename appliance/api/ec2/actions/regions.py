"""Regions and availability zones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import Property, passes
from appliance.api.ec2.paging import filters_of
from appliance.store import zones

_HOST = re.compile(r"[A-Za-z0-9.\[\]:_-]{1,260}", re.ASCII)
_OPT_IN = "opt-in-not-required"


class _Region(NamedTuple):
    name: str
    endpoint: str


class _Zone(NamedTuple):
    name: str
    region: str
    state: str


REGION_FILTERS: Mapping[str, Property[_Region]] = {
    "endpoint": lambda region: [region.endpoint],
    "opt-in-status": lambda region: [_OPT_IN],
    "region-name": lambda region: [region.name],
}
"""What regions can be filtered by."""

ZONE_FILTERS: Mapping[str, Property[_Zone]] = {
    "group-long-name": lambda zone: [zone.region],
    "group-name": lambda zone: [zone.region],
    "message": lambda zone: [],
    "opt-in-status": lambda zone: [_OPT_IN],
    "parent-zone-id": lambda zone: [],
    "parent-zone-name": lambda zone: [],
    "region-name": lambda zone: [zone.region],
    "state": lambda zone: [zone.state],
    "zone-id": lambda zone: [zone.name],
    "zone-name": lambda zone: [zone.name],
    "zone-type": lambda zone: ["availability-zone"],
}
"""What zones can be filtered by."""


@action(filters=REGION_FILTERS, ignores=("AllRegions",))
def describe_regions(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the one region, at the address by which the client knows it."""
    region = call.parts.region
    for name in params.get("RegionNames", ()):
        if name != region:
            raise errors.region_not_found(name)
    endpoint = call.host if _HOST.fullmatch(call.host) else call.parts.config.api.address
    shown = passes(filters_of(params), REGION_FILTERS, _Region(region, endpoint))
    found = {"RegionName": region, "Endpoint": endpoint, "OptInStatus": _OPT_IN}
    return {"Regions": [found] if shown else []}


@action(filters=ZONE_FILTERS, ignores=("AllAvailabilityZones",))
def describe_availability_zones(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the zones of all nodes; one is available while a node of it is up."""
    known = {call.parts.zone: True} | call.read(zones.list_all)
    asked = [*params.get("ZoneNames", ()), *params.get("ZoneIds", ())]
    for name in asked:
        if name not in known:
            raise errors.zone_not_found(name)
    wanted = filters_of(params)
    region = call.parts.region
    found = []
    for name, is_up in sorted(known.items()):
        state = "available" if is_up else "unavailable"
        zone = _Zone(name, region, state)
        if passes(wanted, ZONE_FILTERS, zone) and (not asked or name in asked):
            found.append(
                {
                    "ZoneName": name,
                    "ZoneId": name,
                    "State": state,
                    "RegionName": region,
                    "GroupName": region,
                    "NetworkBorderGroup": region,
                    "OptInStatus": _OPT_IN,
                    "ZoneType": "availability-zone",
                    "Messages": [],
                }
            )
    return {"AvailabilityZones": found}
