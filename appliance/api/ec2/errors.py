"""EC2's error vocabulary: codes, HTTP statuses and the texts that clients know.

A code that is not in ``HTTP_STATUSES`` is answered with 400. Functions are named after what is
wrong; those that name a resource take EC2's own word for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from appliance.errors import (
    AnynodeError,
    Conflict,
    Denied,
    InputError,
    LimitExceeded,
    NotFound,
    Unavailable,
)

HTTP_STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "AuthFailure": 401,
        "DryRunOperation": 412,
        "InsufficientAddressCapacity": 500,
        "InsufficientInstanceCapacity": 500,
        "InsufficientVolumeCapacity": 500,
        "InternalError": 500,
        "InvalidClientTokenId": 403,
        "MissingAuthenticationToken": 403,
        "RequestEntityTooLarge": 413,
        "RequestLimitExceeded": 503,
        "UnauthorizedOperation": 403,
        "Unavailable": 503,
    }
)

_SHOWN_CHARACTERS = 100


class Ec2Error(AnynodeError):
    """An error that is answered to an EC2 client as it stands.

    :param http_status: only to differ from the status that EC2 gives this code.
    """

    code = "InternalError"
    http_status: int = 400  # type: ignore[misc]  # EC2's status belongs to the code, not the class

    def __init__(
        self, code: str, message: str, http_status: int | None = None, *, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.http_status = http_status or HTTP_STATUSES.get(code, 400)


def as_ec2_error(error: AnynodeError) -> Ec2Error:
    """Translate an error of the program for a client.

    A code that was set on the error is EC2's and is kept with the message; a general one gets the
    nearest of EC2's. Internal failures lose their message: it may show hosts, paths and commands.
    """
    if isinstance(error, Ec2Error):
        return error
    if error.exact_code != error.code:
        return Ec2Error(error.exact_code, error.message)
    for kind, code in _NEAREST_CODES:
        if isinstance(error, kind):
            return Ec2Error(code, error.message)
    return internal_error()


_NEAREST_CODES: tuple[tuple[type[AnynodeError], str], ...] = (
    (InputError, "InvalidParameterValue"),
    (NotFound, "InvalidID"),
    (Conflict, "IncorrectState"),
    (Denied, "UnauthorizedOperation"),
    (LimitExceeded, "ResourceCountExceeded"),
    (Unavailable, "Unavailable"),
)


def shorten(text: str) -> str:
    """Return text as a message may quote it."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def invalid_action(action: str) -> Ec2Error:
    return Ec2Error(
        "InvalidAction", f"The action {shorten(action)} is not valid for this web service."
    )


def missing_action() -> Ec2Error:
    return Ec2Error("MissingAction", "The request is missing an action or operation parameter.")


def no_such_version(version: str) -> Ec2Error:
    return Ec2Error(
        "NoSuchVersion",
        f"The requested version ({shorten(version)}) of service AmazonEC2 does not exist.",
    )


def malformed_query(reason: str) -> Ec2Error:
    return Ec2Error(
        "MalformedQueryString", f"The query string contains a syntax error. {reason}".rstrip()
    )


def missing_parameter(name: str) -> Ec2Error:
    return Ec2Error("MissingParameter", f"The request must contain the parameter {shorten(name)}")


def missing_one_of(*names: str) -> Ec2Error:
    return Ec2Error(
        "MissingParameter", f"The request must contain the parameter {' or '.join(names)}"
    )


def invalid_parameter_value(name: str, value: str, reason: str = "") -> Ec2Error:
    text = f"Value ({shorten(value)}) for parameter {shorten(name)} is invalid. {reason}"
    return Ec2Error("InvalidParameterValue", text.rstrip())


def invalid_parameter_combination(reason: str) -> Ec2Error:
    return Ec2Error("InvalidParameterCombination", reason)


def invalid_filter(name: str) -> Ec2Error:
    return Ec2Error("InvalidParameterValue", f"The filter '{shorten(name)}' is invalid")


def invalid_pagination_token() -> Ec2Error:
    return Ec2Error("InvalidParameterValue", "Unable to parse pagination token")


def idempotent_parameter_mismatch() -> Ec2Error:
    return Ec2Error(
        "IdempotentParameterMismatch",
        "Arguments on this idempotent request are inconsistent with arguments used in previous "
        "request(s).",
    )


def dry_run_operation() -> Ec2Error:
    return Ec2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")


def unsupported_operation(reason: str) -> Ec2Error:
    return Ec2Error("UnsupportedOperation", reason)


def operation_not_permitted(reason: str) -> Ec2Error:
    return Ec2Error("OperationNotPermitted", reason)


def dependency_violation(resource_id: str) -> Ec2Error:
    return Ec2Error("DependencyViolation", f"resource {resource_id} has a dependent object")


def request_entity_too_large() -> Ec2Error:
    return Ec2Error("RequestEntityTooLarge", "The request body is too large.")


def request_limit_exceeded() -> Ec2Error:
    return Ec2Error("RequestLimitExceeded", "Request limit exceeded.")


def internal_error() -> Ec2Error:
    return Ec2Error("InternalError", "An internal error has occurred")


def unavailable(reason: str = "") -> Ec2Error:
    return Ec2Error(
        "Unavailable", reason or "The service is unavailable. Please try again shortly."
    )


def missing_authentication() -> Ec2Error:
    return Ec2Error("MissingAuthenticationToken", "Request is missing Authentication Token")


def auth_failure() -> Ec2Error:
    return Ec2Error("AuthFailure", "AWS was not able to validate the provided access credentials")


def incomplete_signature(reason: str) -> Ec2Error:
    return Ec2Error(
        "IncompleteSignature", f"The request signature does not conform to AWS standards. {reason}"
    )


def request_expired(reason: str) -> Ec2Error:
    return Ec2Error("RequestExpired", f"Request has expired. {reason}".rstrip())


def dated_twice() -> Ec2Error:
    """Refuse two parameters of which older ways of signing allowed one."""
    return Ec2Error("InvalidRequest", "Timestamp and Expires cannot be given both.")


def invalid_security_token() -> Ec2Error:
    return Ec2Error(
        "InvalidClientTokenId", "The security token included in the request is invalid."
    )


def unsupported_signature_version() -> Ec2Error:
    return Ec2Error(
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. "
        "Please use AWS4-HMAC-SHA256.",
    )


def unauthorized_operation(reason: str = "") -> Ec2Error:
    text = f"You are not authorized to perform this operation. {reason}"
    return Ec2Error("UnauthorizedOperation", text.rstrip())


def malformed_id(kind: str, resource_id: str, prefix: str = "") -> Ec2Error:
    """Refuse an id by its form; ``kind`` is the code's first half, such as ``InvalidAMIID``."""
    expected = f' (expecting "{prefix}...")' if prefix else ""
    return Ec2Error(f"{kind}.Malformed", f'Invalid id: "{shorten(resource_id)}"{expected}')


def instances_not_found(instance_ids: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidInstanceID.NotFound", _do_not_exist("instance ID", "instance IDs", instance_ids)
    )


def images_not_found(image_ids: Sequence[str]) -> Ec2Error:
    verb = "does not exist" if len(image_ids) == 1 else "do not exist"
    noun = "image id" if len(image_ids) == 1 else "image ids"
    return Ec2Error("InvalidAMIID.NotFound", f"The {noun} '[{_listed(image_ids)}]' {verb}")


def key_pairs_not_found(names: Sequence[str]) -> Ec2Error:
    return Ec2Error("InvalidKeyPair.NotFound", _do_not_exist("key pair", "key pairs", names))


def groups_not_found(ids_or_names: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidGroup.NotFound", _do_not_exist("security group", "security groups", ids_or_names)
    )


def group_rules_not_found(rule_ids: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidSecurityGroupRuleId.NotFound",
        _do_not_exist("security group rule ID", "security group rule IDs", rule_ids),
    )


def volumes_not_found(volume_ids: Sequence[str]) -> Ec2Error:
    text = _do_not_exist("volume", "volumes", volume_ids)
    return Ec2Error("InvalidVolume.NotFound", f"{text}.")


def vpcs_not_found(vpc_ids: Sequence[str]) -> Ec2Error:
    return Ec2Error("InvalidVpcID.NotFound", _do_not_exist("vpc ID", "vpc IDs", vpc_ids))


def subnets_not_found(subnet_ids: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidSubnetID.NotFound", _do_not_exist("subnet ID", "subnet IDs", subnet_ids)
    )


def network_interfaces_not_found(interface_ids: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidNetworkInterfaceID.NotFound",
        _do_not_exist("networkInterface ID", "networkInterface IDs", interface_ids),
    )


def resource_not_found(resource_id: str) -> Ec2Error:
    """Refuse an id whose kind is not known before it is looked up, as in CreateTags."""
    return Ec2Error("InvalidID", f"The ID '{shorten(resource_id)}' is not valid")


def tag_limit_exceeded() -> Ec2Error:
    return Ec2Error(
        "TagLimitExceeded", "The maximum number of Tags for a resource has been reached."
    )


def zone_not_found(zone: str) -> Ec2Error:
    return Ec2Error("InvalidParameterValue", f"Invalid availability zone: [{shorten(zone)}]")


def region_not_found(region: str) -> Ec2Error:
    return Ec2Error("InvalidParameterValue", f"Invalid region name specified: '{shorten(region)}'")


def instance_types_not_found(names: Sequence[str]) -> Ec2Error:
    return Ec2Error(
        "InvalidInstanceType",
        f"The following supplied instance types do not exist: [{_listed(names)}]",
    )


def incorrect_instance_state(instance_id: str, verb_past: str) -> Ec2Error:
    """Refuse because of the instance's state; ``verb_past`` is "started", "stopped", …"""
    return Ec2Error(
        "IncorrectInstanceState",
        f"The instance '{instance_id}' is not in a state from which it can be {verb_past}.",
    )


def not_stopped(instance_id: str) -> Ec2Error:
    return Ec2Error(
        "IncorrectInstanceState", f"The instance '{instance_id}' is not in the 'stopped' state."
    )


def termination_protected(instance_id: str, attribute: str = "disableApiTermination") -> Ec2Error:
    return operation_not_permitted(
        f"The instance '{instance_id}' may not be terminated. Modify its '{attribute}' "
        "instance attribute and try again."
    )


def stop_protected(instance_id: str) -> Ec2Error:
    return operation_not_permitted(
        f"The instance '{instance_id}' may not be stopped. Modify its 'disableApiStop' "
        "instance attribute and try again."
    )


def invalid_instance_attribute(reason: str) -> Ec2Error:
    return Ec2Error("InvalidInstanceAttributeValue", reason)


def key_pair_duplicate(name: str) -> Ec2Error:
    return Ec2Error("InvalidKeyPair.Duplicate", f"The keypair '{shorten(name)}' already exists.")


def key_format() -> Ec2Error:
    return Ec2Error("InvalidKey.Format", "Key is not in valid OpenSSH public key format")


def group_duplicate(name: str, vpc_id: str) -> Ec2Error:
    return Ec2Error(
        "InvalidGroup.Duplicate",
        f"The security group '{shorten(name)}' already exists for VPC '{vpc_id}'",
    )


def group_in_use(group: str) -> Ec2Error:
    return Ec2Error(
        "InvalidGroup.InUse", f"There are active instances using security group '{group}'"
    )


def default_group_kept(group_id: str) -> Ec2Error:
    return Ec2Error(
        "CannotDelete",
        f'the specified group: "{group_id}" name: "default" cannot be deleted by a user',
    )


def permission_not_found() -> Ec2Error:
    return Ec2Error(
        "InvalidPermission.NotFound", "The specified rule does not exist in this security group."
    )


def permission_duplicate(rule: str) -> Ec2Error:
    return Ec2Error("InvalidPermission.Duplicate", f'the specified rule "{rule}" already exists')


def group_rule_limit_exceeded() -> Ec2Error:
    return Ec2Error(
        "RulesPerSecurityGroupLimitExceeded",
        "The maximum number of rules per security group has been reached.",
    )


def user_data_malformed() -> Ec2Error:
    return Ec2Error("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data")


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(names))


def _do_not_exist(singular: str, plural: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"The {singular} '{_listed(names)}' does not exist"
    return f"The {plural} '{_listed(names)}' do not exist"
