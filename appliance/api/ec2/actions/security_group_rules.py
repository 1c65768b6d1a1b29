"""Rules of security groups: letting in and out, and no longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, Refusal, action
from appliance.api.ec2.actions.security_groups import find_group
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import (
    check_ids,
    filters_of,
    missing_of,
    page_of,
    place_of,
    tag_set,
)
from appliance.api.ec2.permissions import (
    Described,
    FindGroup,
    checked_description,
    read_permissions,
    revoked_entry,
    rule_entry,
    said,
)
from appliance.api.ec2.tagging import tags_of
from appliance.store import Transaction, group_filters, groups, tags
from appliance.store.filters import ANY_TAG
from appliance.store.groups import Group, Rule

PREFIX_LISTS = Refusal(
    parameter="IpPermissions.PrefixListIds", text="Prefix lists are not supported."
)
MODIFIED_PREFIX_LIST = Refusal(
    parameter="SecurityGroupRules.SecurityGroupRule.PrefixListId", text=PREFIX_LISTS.text
)


@action(refuses=(PREFIX_LISTS,))
def authorize_ingress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something in."""
    return _authorize(call, params, is_egress=False)


@action(refuses=(PREFIX_LISTS,))
def authorize_egress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something out."""
    return _authorize(call, params, is_egress=True)


@action(refuses=(PREFIX_LISTS,))
def revoke_ingress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something in no longer."""
    return _revoke(call, params, is_egress=False)


@action(refuses=(PREFIX_LISTS,))
def revoke_egress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something out no longer."""
    return _revoke(call, params, is_egress=True)


def _authorize(call: Call, params: Mapping[str, Any], *, is_egress: bool) -> dict[str, Any]:
    wanted_tags = tags_of(params, ["security-group-rule"]).get("security-group-rule", {})

    def change(tx: Transaction) -> list[Rule]:
        group = find_group(tx, call, params)
        wanted = read_permissions(params, _finder(tx, call))
        present = _present(tx, group, is_egress)
        for match, _ in wanted:
            if match in present:
                raise errors.permission_duplicate(said(match))
        _check_ceiling(call, len(present) + len(wanted))
        added = groups.add_rules(tx, group, is_egress=is_egress, rules=wanted)
        rule_ids = [rule.rule_id for rule in added]
        tags.add(tx, call.project_id, "security-group-rule", rule_ids, wanted_tags)
        return added

    added = call.change(change, lambda rules: f"{rules[0].group_id} {len(rules)} rules")
    shown = tag_set(sorted(wanted_tags.items()))
    return {
        "Return": True,
        "SecurityGroupRules": [
            rule_entry(rule, call.project_id, call.parts.region) | {"Tags": shown} for rule in added
        ],
    }


def _revoke(call: Call, params: Mapping[str, Any], *, is_egress: bool) -> dict[str, Any]:
    rule_ids = _checked_rule_ids(params.get("SecurityGroupRuleIds", ()))

    def change(tx: Transaction) -> list[Rule]:
        group = find_group(tx, call, params)
        present = _present(tx, group, is_egress)
        if rule_ids:
            chosen = _by_id(present.values(), rule_ids)
        else:
            chosen = _by_match(present, read_permissions(params, _finder(tx, call)))
        groups.remove_rules(tx, group, [rule.rule_id for rule in chosen])
        return chosen

    removed = call.change(change, lambda rules: f"{rules[0].group_id} {len(rules)} rules")
    return {"Return": True, "RevokedSecurityGroupRules": [revoked_entry(rule) for rule in removed]}


def _present(tx: Transaction, group: Group, is_egress: bool) -> dict[groups.Match, Rule]:
    rules = groups.rules_of(tx, [group.group_id]).get(group.group_id, [])
    return {rule.match: rule for rule in rules if rule.is_egress is is_egress}


def _by_id(present: Any, rule_ids: Sequence[str]) -> list[Rule]:
    by_id = {rule.rule_id: rule for rule in present}
    missing = [each for each in rule_ids if each not in by_id]
    if missing:
        raise errors.group_rules_not_found(missing)
    return [by_id[each] for each in rule_ids]


def _by_match(present: Mapping[groups.Match, Rule], wanted: Sequence[Described]) -> list[Rule]:
    if any(match not in present for match, _ in wanted):
        raise errors.permission_not_found()
    return [present[match] for match, _ in wanted]


@action(filters=(*group_filters.RULE_FILTERS, ANY_TAG, "tag-key"), page=Page())
def describe_security_group_rules(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return single rules with their ids, of all groups of the project."""
    ids = _checked_rule_ids(params.get("SecurityGroupRuleIds", ()))
    size = params.get("MaxResults")

    def read(tx: Transaction) -> tuple[list[Rule], dict[str, list[tuple[str, str]]]]:
        known = {rule.rule_id for rule in groups.list_rules(tx, call.project_id, ids=ids)}
        missing = missing_of(ids, known) if ids else []
        if missing:
            raise errors.group_rules_not_found(missing)
        found = groups.list_rules(
            tx,
            call.project_id,
            ids=ids,
            wanted=filters_of(params),
            after=str(*place_of(params, str)),
            limit=None if size is None else size + 1,
        )
        return found, tags.of(tx, [rule.rule_id for rule in found])

    rules, found_tags = call.read(read)
    found, reply = page_of(rules, size, lambda rule: (rule.rule_id,))
    reply["SecurityGroupRules"] = [
        rule_entry(rule, call.project_id, call.parts.region)
        | {"Tags": tag_set(found_tags.get(rule.rule_id, ()))}
        for rule in found
    ]
    return reply


@action(refuses=(PREFIX_LISTS,))
def describe_ingress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Write anew what is said of rules that let something in."""
    return _describe(call, params, is_egress=False)


@action(refuses=(PREFIX_LISTS,))
def describe_egress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Write anew what is said of rules that let something out."""
    return _describe(call, params, is_egress=True)


def _describe(call: Call, params: Mapping[str, Any], *, is_egress: bool) -> dict[str, Any]:
    by_id = {
        each.get("SecurityGroupRuleId", ""): checked_description(each)
        for each in params.get("SecurityGroupRuleDescriptions", ())
    }
    rule_ids = _checked_rule_ids(list(by_id))

    def change(tx: Transaction) -> Group:
        group = find_group(tx, call, params)
        present = _present(tx, group, is_egress)
        if rule_ids:
            _by_id(present.values(), rule_ids)
            groups.describe_rules(tx, by_id)
        else:
            wanted = read_permissions(params, _finder(tx, call))
            chosen = _by_match(present, wanted)
            said_of = zip(chosen, wanted, strict=True)
            groups.describe_rules(tx, {rule.rule_id: text for rule, (_, text) in said_of})
        return group

    call.change(change, lambda group: group.group_id)
    return {"Return": True}


@action(refuses=(MODIFIED_PREFIX_LIST,))
def modify_security_group_rules(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let rules of a group say something else, under their ids."""
    asked = {each["SecurityGroupRuleId"]: each for each in params["SecurityGroupRules"]}
    rule_ids = _checked_rule_ids(list(asked))

    def change(tx: Transaction) -> Group:
        group = find_group(tx, call, params)
        present = groups.rules_of(tx, [group.group_id]).get(group.group_id, [])
        find = _finder(tx, call)
        changed = [
            _modified(rule, asked[rule.rule_id].get("SecurityGroupRule", {}), find)
            for rule in _by_id(present, rule_ids)
        ]
        kept = [rule for rule in present if rule.rule_id not in asked]
        seen = {(rule.is_egress, rule.match) for rule in kept}
        for rule in changed:
            if (rule.is_egress, rule.match) in seen:
                raise errors.permission_duplicate(said(rule.match))
            seen.add((rule.is_egress, rule.match))
        groups.replace_rules(tx, group, changed)
        return group

    call.change(change, lambda group: group.group_id)
    return {"Return": True}


def _modified(rule: Rule, wanted: Mapping[str, Any], find: FindGroup) -> Rule:
    """Return what becomes of a rule: all of it is said anew."""
    permission: dict[str, Any] = {
        name: wanted[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in wanted
    }
    sources = {
        "CidrIpv4": ("IpRanges", "CidrIp"),
        "CidrIpv6": ("Ipv6Ranges", "CidrIpv6"),
        "ReferencedGroupId": ("UserIdGroupPairs", "GroupId"),
    }
    text = checked_description(wanted)
    for name, (field, key) in sources.items():
        if name in wanted:
            permission[field] = [{key: wanted[name]}]
    found = read_permissions({"IpPermissions": [permission]}, find)
    if len(found) != 1:
        raise errors.invalid_parameter_combination(
            "A rule has exactly one of CidrIpv4, CidrIpv6 and ReferencedGroupId"
        )
    return replace(rule, match=found[0][0], description=text)


def _checked_rule_ids(rule_ids: Sequence[str]) -> list[str]:
    return check_ids(rule_ids, "sgr", "InvalidSecurityGroupRuleId")


def _check_ceiling(call: Call, count: int) -> None:
    if count > call.parts.config.quota.rules:
        raise errors.group_rule_limit_exceeded()


def _finder(tx: Transaction, call: Call) -> FindGroup:
    """Return what finds the groups that rules name: the project's own, others' are not seen."""

    def find(pair: Mapping[str, str]) -> Group:
        if pair.get("UserId", call.project_id) != call.project_id:
            raise errors.groups_not_found([pair.get("GroupId") or pair.get("GroupName", "")])
        return find_group(tx, call, pair)

    return find
