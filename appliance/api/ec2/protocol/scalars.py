"""Single values of a request, from text to what their shape says."""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.protocol.model import Shape
from appliance.api.ec2.protocol.text import NOT_IN_XML

MAX_STRING_CHARACTERS = 4096
# Base64 text by nature; EC2's own limits, in the encoded form with line breaks, have room in these.
_LONG_STRINGS: Mapping[str, int] = {
    "ModifyInstanceAttributeValue": 128 * 1024,
    "RunInstancesUserData": 128 * 1024,
    "ImageUefiDataRequest": 64_000,
}

_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_TIMESTAMP = re.compile(
    r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]\d{2}:\d{2})?)?", re.ASCII
)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_INTEGER_BITS: Mapping[str, int] = {"integer": 32, "long": 64}

Reader = Callable[[str, Shape, str], Any]


def _read_string(text: str, shape: Shape, name: str) -> str:
    limit = _LONG_STRINGS.get(shape.name, MAX_STRING_CHARACTERS)
    if len(text) > limit:
        raise errors.invalid_parameter_value(
            name, text, f"It must not be longer than {limit} characters."
        )
    if NOT_IN_XML.search(text) is not None:
        raise errors.invalid_parameter_value(name, text, "It has characters that XML cannot carry.")
    return text


def _read_boolean(text: str, shape: Shape, name: str) -> bool:
    value = _BOOLEANS.get(text.lower()) if len(text) <= 5 else None
    if value is None:
        raise errors.invalid_parameter_value(name, text, "It must be true or false.")
    return value


def _read_integer(text: str, shape: Shape, name: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise errors.invalid_parameter_value(name, text, "It must be an integer.")
    value = int(text)
    limit = 1 << (_INTEGER_BITS[shape.type] - 1)
    if not -limit <= value < limit:
        raise errors.invalid_parameter_value(name, text, "It is out of range.")
    _check_bounds(value, text, shape, name)
    return value


def _read_number(text: str, shape: Shape, name: str) -> float:
    if len(text) > 40 or not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise errors.invalid_parameter_value(name, text, "It must be a number.")
    value = float(text)
    _check_bounds(value, text, shape, name)
    return value


def _check_bounds(value: float, text: str, shape: Shape, name: str) -> None:
    if shape.minimum is not None and value < shape.minimum:
        reason = f"Expecting a value greater than {shape.minimum:g}."
        raise errors.invalid_parameter_value(name, f" {text} ", reason)
    if shape.maximum is not None and value > shape.maximum:
        reason = f"Expecting a value less than or equal to {shape.maximum:g}."
        raise errors.invalid_parameter_value(name, f" {text} ", reason)


def _read_timestamp(text: str, shape: Shape, name: str) -> datetime:
    try:
        if not _TIMESTAMP.fullmatch(text):
            raise ValueError("not ISO 8601")
        value = datetime.fromisoformat(text)
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise errors.invalid_parameter_value(
            name, text, "It must be a time such as 2026-01-02T03:04:05Z."
        ) from error


def _read_blob(text: str, shape: Shape, name: str) -> bytes:
    try:
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.invalid_parameter_value(name, text, "It must be base64.") from error


SCALAR_READERS: Mapping[str, Reader] = {
    "string": _read_string,
    "boolean": _read_boolean,
    "integer": _read_integer,
    "long": _read_integer,
    "float": _read_number,
    "double": _read_number,
    "timestamp": _read_timestamp,
    "blob": _read_blob,
}
