"""Rules of security groups: letting in and out, and no longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.actions.security_groups import find_group
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, tag_set
from appliance.api.ec2.permissions import (
    Described,
    FindGroup,
    read_permissions,
    revoked_entry,
    rule_entry,
    said,
)
from appliance.api.ec2.tagging import tags_of
from appliance.store import Transaction, groups, tags
from appliance.store.groups import Group, Rule


@action()
def authorize_ingress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something in."""
    return _authorize(call, params, is_egress=False)


@action()
def authorize_egress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something out."""
    return _authorize(call, params, is_egress=True)


@action()
def revoke_ingress(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Let something in no longer."""
    return _revoke(call, params, is_egress=False)


@action()
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
    rule_ids = check_ids(
        params.get("SecurityGroupRuleIds", ()), "sgr", "InvalidSecurityGroupRuleId"
    )

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
