"""Filters over what is not in the store: the same names and wildcards, decided here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from appliance.api.ec2 import errors
from appliance.store.filters import Filter

T = TypeVar("T")

Property = Callable[[T], Sequence[str]]
"""Returns what a thing has of what a filter names."""

_TOKEN = re.compile(r"\\(.)|([*?])|([^\\*?]+|\\)", re.DOTALL)


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
        passes &= any(_pattern(value).fullmatch(each) for value in values for each in owned)
    return passes


@lru_cache(maxsize=512)
def _pattern(value: str) -> re.Pattern[str]:
    chunks = [""]
    for found in _TOKEN.finditer(value):
        if found[2] == "*":
            chunks.append("")
        else:
            chunks[-1] += "." if found[2] else re.escape(found[1] or found[3])
    first, *rest = chunks
    if not rest:
        return re.compile(first, re.DOTALL)
    # A star takes as little as it can and gives nothing back: the nearest place for what follows
    # is as good as any, and without ways back no value makes the search long.
    *between, last = rest
    searched = "".join(f"(?>.*?{chunk})" for chunk in between if chunk)
    return re.compile(f"{first}{searched}.*{last}", re.DOTALL)
