"""Pages of a list, filters and ids: what the Describe actions have in common."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from appliance.api.ec2 import errors
from appliance.store.filters import Filter

T = TypeVar("T")

MOST_FILTER_VALUES = 200

ID_DIGITS = r"(?:[0-9a-f]{8}|[0-9a-f]{17})"
_token_decoder = msgspec.json.Decoder(list[float | str])


def filters_of(params: Mapping[str, Any]) -> list[Filter]:
    """Return the filters of a request.

    :raises Ec2Error: one has no name or no value, or there are too many values.
    """
    found = []
    count = 0
    for each in params.get("Filters", ()):
        if not each.get("Name"):
            raise errors.missing_parameter("Filter.Name")
        if not each.get("Values"):
            raise errors.missing_parameter("Filter.Value")
        count += len(each["Values"])
        found.append(Filter(each["Name"], each["Values"]))
    if count > MOST_FILTER_VALUES:
        raise errors.Ec2Error(
            "FilterLimitExceeded",
            f"The maximum number of filter values specified on a single call is "
            f"{MOST_FILTER_VALUES}",
        )
    return found


def next_token(*place: float | str) -> str:
    """Return the token of the page that begins behind a row."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(params: Mapping[str, Any], *kinds: type) -> tuple[float | str, ...]:
    """Return the row that the page asked for begins behind; nothing for the first page.

    :raises Ec2Error: the token is not one of ours.
    """
    token = params.get("NextToken")
    if not token:
        return ()
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        place = _token_decoder.decode(raw)
    except (UnicodeEncodeError, binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise errors.invalid_pagination_token() from error
    fits = len(place) == len(kinds) and all(
        isinstance(value, (float, int) if kind is float else kind)
        for value, kind in zip(place, kinds, strict=False)
    )
    if not fits:
        raise errors.invalid_pagination_token()
    return tuple(place)


def page_of(
    found: list[T], size: int | None, place: Callable[[T], tuple[float | str, ...]]
) -> tuple[list[T], dict[str, Any]]:
    """Return the rows of a page, and what its reply begins with.

    :param found: one row more than the page has, where there are more.
    :param place: returns what the token of the next page is made of.
    """
    if size is None or len(found) <= size:
        return found, {}
    return found[:size], {"NextToken": next_token(*place(found[size - 1]))}


def missing_of(ids: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the ids that are not known."""
    return [each for each in ids if each not in known]


def check_ids(ids: Sequence[str], prefix: str, kind: str) -> list[str]:
    """Return ids once each, in their order.

    :param kind: the first half of EC2's code, such as ``InvalidInstanceID``.
    :raises Ec2Error: one has not the form of an id.
    """
    form = re.compile(f"{prefix}-{ID_DIGITS}")
    for each in ids:
        if not form.fullmatch(each):
            raise errors.malformed_id(kind, each, f"{prefix}-")
    return list(dict.fromkeys(ids))


def moment(seconds: float) -> datetime:
    """Return a time as replies carry it."""
    return datetime.fromtimestamp(int(seconds), UTC)


def tag_set(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return tags as replies carry them."""
    return [{"Key": key, "Value": value} for key, value in pairs]
