"""Rules as requests and replies have them, and in the one form in which they are stored."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors
from appliance.store.group_filters import PROTOCOL_NAMES
from appliance.store.groups import ALL_PROTOCOLS, ANY_PORT, Group, Match, Rule

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
# Protocols with ports; EC2 knows two, the rules of a node four.
_WITH_PORTS = {TCP, UDP, 33, 132}
_WITH_TYPES = {ICMP, ICMPV6}
_NUMBERS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "all": ALL_PROTOCOLS}

_CIDR = re.compile(r"[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}", re.ASCII)
_DESCRIPTION = re.compile(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{0,255}", re.ASCII)

FindGroup = Callable[[Mapping[str, str]], Group]
"""Finds the group of a UserIdGroupPair; raises InvalidGroup.NotFound."""

Described = tuple[Match, str]
"""What a rule lets through, and what its owner says about it."""


def read_permissions(params: Mapping[str, Any], find_group: FindGroup) -> list[Described]:
    """Return the rules of a request, each once, in their order.

    :raises Ec2Error: one is malformed, or there is none.
    """
    permissions = params.get("IpPermissions") or _of_historic_form(params)
    found = [rule for each in permissions for rule in _rules(each, find_group)]
    if not found:
        raise errors.missing_parameter("ipPermissions")
    if len({match for match, _ in found}) < len(found):
        raise errors.invalid_parameter_value(
            "ipPermissions", "", "The same permission must not appear multiple times"
        )
    return found


def _of_historic_form(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One rule in parameters of its own, as the first clients sent it."""
    permission: dict[str, Any] = {
        name: params[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in params
    }
    if "CidrIp" in params:
        field = "Ipv6Ranges" if ":" in params["CidrIp"] else "IpRanges"
        key = "CidrIpv6" if ":" in params["CidrIp"] else "CidrIp"
        permission[field] = [{key: params["CidrIp"]}]
    if "SourceSecurityGroupName" in params:
        permission.setdefault("IpProtocol", "-1")
        pair = {"GroupName": params["SourceSecurityGroupName"]}
        if "SourceSecurityGroupOwnerId" in params:
            pair["UserId"] = params["SourceSecurityGroupOwnerId"]
        permission["UserIdGroupPairs"] = [pair]
    return [permission] if permission else []


def _rules(permission: Mapping[str, Any], find_group: FindGroup) -> Iterable[Described]:
    protocol = read_protocol(permission.get("IpProtocol", ""))
    low, high = _ports(protocol, permission.get("FromPort"), permission.get("ToPort"))
    ranges = [
        (read_cidr(each.get("CidrIp", ""), 4), each) for each in permission.get("IpRanges", ())
    ]
    ranges += [
        (read_cidr(each.get("CidrIpv6", ""), 6), each) for each in permission.get("Ipv6Ranges", ())
    ]
    pairs = permission.get("UserIdGroupPairs", ())
    if not ranges and not pairs:
        raise errors.missing_parameter("ipRanges")
    for cidr, each in ranges:
        match = Match(protocol=protocol, from_port=low, to_port=high, cidr=cidr)
        yield match, checked_description(each)
    for each in pairs:
        source = find_group(each).group_id
        match = Match(protocol=protocol, from_port=low, to_port=high, source_group_id=source)
        yield match, checked_description(each)


def read_protocol(text: str) -> int:
    """Return the number of a protocol that is given by name or number.

    :raises Ec2Error: there is no such protocol.
    """
    if not text:
        raise errors.missing_parameter("ipProtocol")
    known = _NUMBERS.get(text.lower())
    if known is not None:
        return known
    if re.fullmatch(r"-1|\d{1,3}", text, re.ASCII) and int(text) <= 255:
        return int(text)
    raise errors.invalid_parameter_value(
        "IpProtocol", text, "Unrecognized protocol: use tcp, udp, icmp, icmpv6, -1 or a number."
    )


def _ports(protocol: int, low: int | None, high: int | None) -> tuple[int, int]:
    if protocol in _WITH_PORTS:
        return _port_range(low, high)
    if protocol in _WITH_TYPES:
        return _type_and_code(low, high)
    # These have no ports, and EC2 takes no notice of those that are given.
    return ANY_PORT, ANY_PORT


def _port_range(low: int | None, high: int | None) -> tuple[int, int]:
    if low is None or high is None:
        raise errors.Ec2Error(
            "InvalidParameterValue",
            "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.",
        )
    for port in (low, high):
        if not 0 <= port <= 65535:
            raise errors.Ec2Error("InvalidParameterValue", f"TCP/UDP port ({port}) out of range")
    if low > high:
        raise errors.Ec2Error("InvalidParameterValue", f"Invalid TCP/UDP port range ({low}:{high})")
    return low, high


def _type_and_code(kind: int | None, code: int | None) -> tuple[int, int]:
    kind = ANY_PORT if kind is None else kind
    code = ANY_PORT if code is None else code
    for value, word in ((kind, "type"), (code, "code")):
        if not -1 <= value <= 255:
            raise errors.Ec2Error("InvalidParameterValue", f"ICMP {word} ({value}) out of range")
    if kind == ANY_PORT and code != ANY_PORT:
        raise errors.Ec2Error(
            "InvalidParameterValue", f"ICMP code ({code}) must be -1 for all ICMP types"
        )
    return kind, code


def read_cidr(text: str, version: int) -> str:
    """Return a range in its one form, host bits cleared, as EC2 does.

    :raises Ec2Error: it is no range of that version.
    """
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError("not a range")
        network = ipaddress.ip_network(text, strict=False)
        if network.version != version:
            raise ValueError("another version")
    except ValueError as error:
        raise errors.Ec2Error(
            "InvalidParameterValue", f"CIDR block {errors.shorten(text)} is malformed"
        ) from error
    return str(network)


def checked_description(each: Mapping[str, Any]) -> str:
    """Return what an owner says of a rule.

    :raises Ec2Error: it is too long, or has characters that EC2 does not take.
    """
    text: str = each.get("Description", "")
    if not _DESCRIPTION.fullmatch(text):
        raise errors.invalid_parameter_value(
            "description",
            text,
            "Valid descriptions are strings less than 256 characters from the following set:  "
            "a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*",
        )
    return text


def said(match: Match) -> str:
    """Return a rule as EC2's errors name it."""
    peer = match.cidr or match.source_group_id
    if match.protocol == ALL_PROTOCOLS:
        return f"peer: {peer}, ALL, ALLOW"
    protocol = protocol_name(match.protocol).upper()
    if match.protocol in _WITH_TYPES:
        return f"peer: {peer}, {protocol}, type: {match.from_port}, code: {match.to_port}, ALLOW"
    if match.protocol in _WITH_PORTS:
        ports = f"from port: {match.from_port}, to port: {match.to_port}"
        return f"peer: {peer}, {protocol}, {ports}, ALLOW"
    return f"peer: {peer}, {protocol}, ALLOW"


def protocol_name(protocol: int) -> str:
    """Return a protocol as replies name it."""
    return PROTOCOL_NAMES.get(protocol, str(protocol))


def permission_set(rules: Sequence[Rule], owner_id: str) -> list[dict[str, Any]]:
    """Return rules as replies carry them: those with the same protocol and ports together."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for rule in rules:
        match = rule.match
        entry = found.get((match.protocol, match.from_port, match.to_port))
        if entry is None:
            entry = found[match.protocol, match.from_port, match.to_port] = {
                "IpProtocol": protocol_name(match.protocol),
                **_shown_ports(match),
                "IpRanges": [],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "UserIdGroupPairs": [],
            }
        description = {"Description": rule.description or None}
        if match.source_group_id:
            pair = {"GroupId": match.source_group_id, "UserId": owner_id}
            entry["UserIdGroupPairs"].append(pair | description)
        elif ":" in match.cidr:
            entry["Ipv6Ranges"].append({"CidrIpv6": match.cidr} | description)
        else:
            entry["IpRanges"].append({"CidrIp": match.cidr} | description)
    return list(found.values())


def rule_entry(rule: Rule, owner_id: str, region: str) -> dict[str, Any]:
    """Return one rule with its id, as the replies to Authorize carry it."""
    return {
        **_common(rule),
        "GroupOwnerId": owner_id,
        "ReferencedGroupInfo": (
            {"GroupId": rule.match.source_group_id, "UserId": owner_id}
            if rule.match.source_group_id
            else None
        ),
        "SecurityGroupRuleArn": (
            f"arn:aws:ec2:{region}:{owner_id}:security-group-rule/{rule.rule_id}"
        ),
        "Tags": [],
    }


def revoked_entry(rule: Rule) -> dict[str, Any]:
    """Return one rule that was removed, as the replies to Revoke carry it."""
    return {**_common(rule), "ReferencedGroupId": rule.match.source_group_id or None}


def _common(rule: Rule) -> dict[str, Any]:
    match = rule.match
    is_v6 = ":" in match.cidr
    return {
        "SecurityGroupRuleId": rule.rule_id,
        "GroupId": rule.group_id,
        "IsEgress": rule.is_egress,
        "IpProtocol": protocol_name(match.protocol),
        "FromPort": match.from_port,
        "ToPort": match.to_port,
        "CidrIpv4": None if is_v6 else match.cidr or None,
        "CidrIpv6": match.cidr if is_v6 else None,
        "Description": rule.description or None,
    }


def _shown_ports(match: Match) -> dict[str, int]:
    if match.protocol in _WITH_PORTS | _WITH_TYPES:
        return {"FromPort": match.from_port, "ToPort": match.to_port}
    return {}
