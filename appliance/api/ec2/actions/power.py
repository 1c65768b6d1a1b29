"""Terminate, stop, start and reboot: what is wanted is written, the rest follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids
from appliance.model import InstanceState
from appliance.store import Transaction, launches, wishes
from appliance.store.instance_filters import STATE_CODES
from appliance.store.wishes import Standing

PENDING, RUNNING = InstanceState.PENDING, InstanceState.RUNNING
STOPPING, STOPPED = InstanceState.STOPPING, InstanceState.STOPPED
SHUTTING_DOWN, TERMINATED = InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED

MOST_IDS = 1000

_GOING = (SHUTTING_DOWN, TERMINATED)


@action()
def terminate_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Want instances gone; one that is gone or going already is no error."""
    ids = ids_of(params)

    def change(tx: Transaction) -> Mapping[str, Standing]:
        found = standing_of_all(tx, call, ids)
        protected = _protections(found)
        zones = {found[each].zone for each in protected}
        chosen = [
            each.instance_id
            for each in found.values()
            if each.state not in _GOING and each.zone not in zones
        ]
        if protected and not chosen:
            raise next(iter(protected.values()))
        wishes.terminate(tx, chosen, call.request_id)
        return found

    found = call.change(change, " ".join(ids))
    # As in EC2: a protected instance keeps those of its own zone, the others go, the call fails.
    for refusal in _protections(found).values():
        raise refusal
    return {"TerminatingInstances": _changes(ids, found, SHUTTING_DOWN, kept=[TERMINATED])}


@action()
def stop_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Want running instances off."""
    ids = ids_of(params)
    if params.get("Hibernate"):
        raise errors.unsupported_operation("Hibernation is not supported.")
    is_forced = params.get("Force", False) or params.get("SkipOsShutdown", False)

    def change(tx: Transaction) -> Mapping[str, Standing]:
        found = standing_of_all(tx, call, ids)
        _check_states(found, [RUNNING, STOPPING, STOPPED], "stopped")
        # An instance that takes its time to stop can still be told to stop at once.
        stoppable = (RUNNING, STOPPING) if is_forced else (RUNNING,)
        chosen = [each for each in found.values() if each.state in stoppable]
        for each in chosen:
            if each.attributes.get("disable_api_stop"):
                raise errors.stop_protected(each.instance_id)
        wishes.stop(tx, chosen, call.request_id, is_forced=is_forced)
        return found

    found = call.change(change, " ".join(ids))
    return {"StoppingInstances": _changes(ids, found, STOPPING, kept=[STOPPED])}


@action(ignores=("AdditionalInfo",))
def start_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Want stopped instances running."""
    ids = ids_of(params)

    def change(tx: Transaction) -> Mapping[str, Standing]:
        found = standing_of_all(tx, call, ids)
        _check_states(found, [STOPPED, PENDING, RUNNING], "started")
        chosen = [each for each in found.values() if each.state is STOPPED]
        launches.take_running_quota(tx, [each.instance_id for each in chosen])
        wishes.start(tx, chosen, call.request_id)
        return found

    found = call.change(change, " ".join(ids))
    return {"StartingInstances": _changes(ids, found, PENDING, kept=[RUNNING])}


@action()
def reboot_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Have running instances boot anew; a terminated one is left alone, as EC2 does."""
    ids = ids_of(params)

    def running(tx: Transaction) -> list[str]:
        found = standing_of_all(tx, call, ids)
        _check_states(found, [RUNNING, TERMINATED], "rebooted")
        return [each for each in ids if found[each].state is RUNNING]

    def change(tx: Transaction) -> list[str]:
        chosen = running(tx)
        wishes.reboot(tx, chosen, call.request_id)
        return chosen

    # A client that sends the same request again within its second asks for one reboot, not two.
    call.change(change, " ".join(ids), when_repeated=running)
    return {}


def ids_of(params: Mapping[str, Any]) -> list[str]:
    """Return the ids of a request once each.

    :raises Ec2Error: one is malformed, or there are too many.
    """
    ids = check_ids(params["InstanceIds"], "i", "InvalidInstanceID")
    if len(ids) > MOST_IDS:
        raise errors.invalid_parameter_value(
            "instanceId", str(len(ids)), f"At most {MOST_IDS} instances can be named."
        )
    return ids


def _protections(found: Mapping[str, Standing]) -> dict[str, errors.Ec2Error]:
    """Return why instances may not be terminated, by id; protection from stops is one from this."""
    reasons = {}
    for each in found.values():
        if each.state in _GOING:
            continue
        if each.attributes.get("disable_api_termination"):
            reasons[each.instance_id] = errors.termination_protected(each.instance_id)
        elif each.attributes.get("disable_api_stop"):
            reasons[each.instance_id] = errors.termination_protected(
                each.instance_id, "disableApiStop"
            )
    return reasons


def standing_of_all(tx: Transaction, call: Call, ids: Sequence[str]) -> Mapping[str, Standing]:
    """Return how the instances of a request stand, by id.

    :raises Ec2Error: one does not exist.
    """
    found = wishes.standing(
        tx, call.project_id, ids, terminated_s=call.parts.config.store.terminated_s
    )
    missing = [each for each in ids if each not in found]
    if missing:
        raise errors.instances_not_found(missing)
    return found


def _check_states(
    found: Mapping[str, Standing], allowed: Collection[InstanceState], verb_past: str
) -> None:
    for each in found.values():
        if each.state not in allowed:
            raise errors.incorrect_instance_state(each.instance_id, verb_past)


def _changes(
    ids: Sequence[str],
    found: Mapping[str, Standing],
    state: InstanceState,
    *,
    kept: Collection[InstanceState],
) -> list[dict[str, Any]]:
    """Return the state before and after; an instance in one of ``kept`` stays what it was."""
    return [
        {
            "InstanceId": each,
            "PreviousState": _state(found[each].state),
            "CurrentState": _state(found[each].state if found[each].state in kept else state),
        }
        for each in ids
    ]


def _state(state: InstanceState) -> dict[str, Any]:
    return {"Code": STATE_CODES[state], "Name": state.value}
