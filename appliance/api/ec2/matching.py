"""Filters over what is not in the store: the same names and wildcards, decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from appliance.api.ec2 import errors
from appliance.store.filters import Filter, fits

T = TypeVar("T")

Property = Callable[[T], Sequence[str]]
"""Returns what a thing has of what a filter names."""


def passes(wanted: Iterable[Filter], filters: Mapping[str, Property[T]], thing: T) -> bool:
    """Say whether a thing passes all filters.

    :raises Ec2Error: a filter is not known.
    """
    asked = list(wanted)
    return matches(asked, {name: filters[name](thing) for name, _ in asked if name in filters})


def matches(wanted: Iterable[Filter], properties: Mapping[str, Sequence[str]]) -> bool:
    """Say whether something with these properties passes all filters.

    :raises Ec2Error: a filter is none of the properties.
    """
    passes = True
    for name, values in wanted:
        if name not in properties:
            raise errors.invalid_filter(name)
        owned = properties[name]
        passes &= any(fits(each, values) for each in owned)
    return passes
