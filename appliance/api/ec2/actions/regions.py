"""Regions and availability zones."""

from __future__ import annotations

import re
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import matches
from appliance.api.ec2.paging import filters_of
from appliance.store import zones

_HOST = re.compile(r"[A-Za-z0-9.\[\]:_-]{1,260}", re.ASCII)
_OPT_IN = "opt-in-not-required"


def describe_regions(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the one region, at the address by which the client knows it."""
    region = call.parts.region
    for name in params.get("RegionNames", ()):
        if name != region:
            raise errors.region_not_found(name)
    endpoint = call.host if _HOST.fullmatch(call.host) else call.parts.config.api.address
    properties = {
        "region-name": [region],
        "endpoint": [endpoint],
        "opt-in-status": [_OPT_IN],
    }
    shown = matches(filters_of(params), properties)
    found = {"RegionName": region, "Endpoint": endpoint, "OptInStatus": _OPT_IN}
    return {"Regions": [found] if shown else []}


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
        properties = {
            "group-name": [region],
            "message": [],
            "opt-in-status": [_OPT_IN],
            "region-name": [region],
            "state": [state],
            "zone-id": [name],
            "zone-name": [name],
            "zone-type": ["availability-zone"],
        }
        if matches(wanted, properties) and (not asked or name in asked):
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
