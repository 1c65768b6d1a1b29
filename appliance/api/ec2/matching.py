"""Filters over what is not in the store: the same names and wildcards, decided here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from appliance.api.ec2 import errors
from appliance.store.filters import Filter

_TOKEN = re.compile(r"\\(.)|([*?])|([^\\*?]+|\\)", re.DOTALL)


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
    wildcards = {"*": ".*", "?": "."}
    return re.compile(
        "".join(
            wildcards.get(found[2] or "") or re.escape(found[1] or found[3])
            for found in _TOKEN.finditer(value)
        ),
        re.DOTALL,
    )
