"""EC2's error vocabulary."""

from __future__ import annotations

import pytest

from appliance.api.ec2 import errors
from appliance.errors import (
    AnynodeError,
    CommandFailed,
    Conflict,
    Denied,
    InputError,
    NotFound,
    Unavailable,
)


@pytest.mark.parametrize(
    ("error", "code", "status", "text"),
    [
        (
            errors.instances_not_found(["i-1"]),
            "InvalidInstanceID.NotFound",
            400,
            "The instance ID 'i-1' does not exist",
        ),
        (
            errors.instances_not_found(["i-1", "i-2"]),
            "InvalidInstanceID.NotFound",
            400,
            "The instance IDs 'i-1, i-2' do not exist",
        ),
        (
            errors.images_not_found(["ami-1"]),
            "InvalidAMIID.NotFound",
            400,
            "The image id '[ami-1]' does not exist",
        ),
        (
            errors.volumes_not_found(["vol-1"]),
            "InvalidVolume.NotFound",
            400,
            "The volume 'vol-1' does not exist.",
        ),
        (
            errors.malformed_id("InvalidInstanceID", "x"),
            "InvalidInstanceID.Malformed",
            400,
            'Invalid id: "x"',
        ),
        (
            errors.dry_run_operation(),
            "DryRunOperation",
            412,
            "Request would have succeeded, but DryRun flag is set.",
        ),
        (
            errors.unauthorized_operation(),
            "UnauthorizedOperation",
            403,
            "You are not authorized to perform this operation.",
        ),
        (
            errors.auth_failure(),
            "AuthFailure",
            401,
            "AWS was not able to validate the provided access credentials",
        ),
        (errors.internal_error(), "InternalError", 500, "An internal error has occurred"),
        (errors.request_limit_exceeded(), "RequestLimitExceeded", 503, "Request limit exceeded."),
    ],
)
def test_codes_statuses_and_texts(
    error: errors.Ec2Error, code: str, status: int, text: str
) -> None:
    assert (error.exact_code, error.http_status, error.message) == (code, status, text)


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (
            NotFound("Instance i-1 is gone.", code="InvalidInstanceID.NotFound"),
            "InvalidInstanceID.NotFound",
            400,
        ),
        (Denied("No.", code="AuthFailure"), "AuthFailure", 401),
        (InputError("Bad."), "InvalidParameterValue", 400),
        (Conflict("Busy."), "IncorrectState", 400),
        (Denied("No."), "UnauthorizedOperation", 403),
        (Unavailable("Later."), "Unavailable", 503),
    ],
)
def test_errors_of_the_program_get_ec2_codes(error: AnynodeError, code: str, status: int) -> None:
    translated = errors.as_ec2_error(error)
    assert (translated.exact_code, translated.http_status) == (code, status)
    assert translated.message == error.message


def test_internal_failures_do_not_show_their_commands() -> None:
    translated = errors.as_ec2_error(CommandFailed("qemu-img create /secret failed."))
    assert (translated.exact_code, translated.http_status) == ("InternalError", 500)
    assert "secret" not in str(translated)


def test_an_ec2_error_is_passed_on_as_it_is() -> None:
    error = errors.Ec2Error("InvalidZone", "No such zone.", 404)
    assert errors.as_ec2_error(error) is error
    assert error.http_status == 404


def test_long_values_are_cut() -> None:
    assert len(errors.invalid_parameter_value("n" * 999, "v" * 9999).message) < 300
    assert (
        len(errors.instances_not_found([f"i-{number:017x}" for number in range(999)]).message) < 200
    )
