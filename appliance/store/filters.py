"""EC2's filters as SQL: exact values, the wildcards ``*`` and ``?``, tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import ColumnElement, Text, and_, case, cast, false, func, literal, or_, select

from appliance.errors import InputError
from appliance.store import Transaction
from appliance.store.schema import tags


class Filter(NamedTuple):
    """One filter of a request: what it names, and the values of which one must fit."""

    name: str
    values: Sequence[str]


Rule = Callable[[Transaction, Sequence[str]], ColumnElement[bool]]
"""Makes the condition for the values of a filter."""

Column = ColumnElement[str]

ANY_TAG = "tag:<key>"
TAGS = (ANY_TAG, "tag-key", "tag-value")
"""The filters that everything with tags has; the first stands for a filter of each key."""

_TOKEN = re.compile(r"\\(.)|([*?])|([^\\*?]+|\\)", re.DOTALL)
_PARTIAL_TIME = re.compile(r"(\d{4})(-\d\d)?(-\d\d)?(T\d\d)?(:\d\d)?(:\d\d)?(\.\d{1,6})?")
_SHORTEST_TIME = "0001-01-01T00:00:00"


def text(column: Column) -> Rule:
    """Return the rule for a column of text."""
    return lambda tx, values: matches(tx, column, values)


def flag(column: ColumnElement[bool]) -> Rule:
    """Return the rule for a column that is true or false; any other value fits nothing."""
    return text(case((column.is_(True), "true"), else_="false"))


def number(column: ColumnElement[int]) -> Rule:
    """Return the rule for a column that is a whole number, by its digits."""
    return text(cast(column, Text))


def nothing(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition of a property that no resource has here."""
    return false()


def constant(value: str) -> Rule:
    """Return the rule for a property that is the same for all resources."""
    return lambda tx, values: matches(tx, literal(value), values)


def moment(column: ColumnElement[float]) -> Rule:
    """Return the rule for a time: a whole one, its beginning with ``*``, or any pattern."""

    def rule(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
        spans = {value: span for value in values if (span := _span(value)) is not None}
        patterns = [value for value in values if value not in spans]
        return or_(
            matches(tx, _written(tx, column), patterns) if patterns else false(),
            *(and_(column >= low, column < high) for low, high in spans.values()),
        )

    return rule


def matches(tx: Transaction, column: Column, values: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that a column is one of the values, wildcards included."""
    exact: list[str] = []
    patterns: list[str] = []
    for value in values:
        pieces = _pieces(value)
        if all(wildcard == "" for wildcard, _ in pieces):
            exact.append("".join(literal_text for _, literal_text in pieces))
        else:
            patterns.append(_glob(pieces) if tx.is_sqlite else _like(pieces))
    conditions: list[ColumnElement[bool]] = [column.in_(exact)] if exact else []
    for pattern in patterns:
        # LIKE of SQLite takes no notice of case; GLOB does, as EC2's filters do.
        conditions.append(
            column.op("GLOB", is_comparison=True)(pattern)
            if tx.is_sqlite
            else column.like(pattern, escape="\\")
        )
    return or_(false(), *conditions)


def is_known(name: str, names: Collection[str]) -> bool:
    """Say whether a filter is one of those named."""
    is_tag = name.startswith("tag:") and len(name) > len("tag:")
    return name in names or (is_tag and ANY_TAG in names)


def fits(text: str, values: Iterable[str]) -> bool:
    """Say of a text what :func:`matches` says of a column."""
    return any(_pattern(value).fullmatch(text) for value in values)


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


def conditions(
    tx: Transaction,
    rules: Mapping[str, Rule],
    wanted: Iterable[Filter],
    tagged: ColumnElement[str] | None = None,
) -> list[ColumnElement[bool]]:
    """Return the conditions of a request's filters; all of them must hold.

    :param tagged: the column that tags refer to; without it there are no filters by tag.
    :raises InputError: a filter is not known.
    """
    made = []
    for name, values in wanted:
        rule = rules.get(name) or (_tag_rule(name, tagged) if tagged is not None else None)
        if rule is None:
            raise InputError(f"The filter '{name[:100]}' is invalid", code="InvalidParameterValue")
        made.append(rule(tx, values))
    return made


def _tag_rule(name: str, tagged: ColumnElement[str]) -> Rule | None:
    key = name.removeprefix("tag:")
    if key != name and key:
        return lambda tx, values: tagged.in_(
            select(tags.c.resource_id).where(tags.c.key == key, matches(tx, tags.c.value, values))
        )
    column = {"tag-key": tags.c.key, "tag-value": tags.c.value}.get(name)
    if column is None:
        return None
    return lambda tx, values: tagged.in_(
        select(tags.c.resource_id).where(matches(tx, column, values))
    )


def _pieces(value: str) -> list[tuple[str, str]]:
    """Split a value into (wildcard, "") and ("", text); a backslash takes a wildcard's meaning."""
    return [
        (found[2], "") if found[2] else ("", found[1] or found[3])
        for found in _TOKEN.finditer(value)
    ]


def _glob(pieces: Iterable[tuple[str, str]]) -> str:
    return "".join(
        wildcard or re.sub(r"([*?\[])", r"[\1]", literal_text) for wildcard, literal_text in pieces
    )


def _like(pieces: Iterable[tuple[str, str]]) -> str:
    wildcards = {"*": "%", "?": "_"}
    return "".join(
        wildcards.get(wildcard) or re.sub(r"([\\%_])", r"\\\1", literal_text)
        for wildcard, literal_text in pieces
    )


def _written(tx: Transaction, column: ColumnElement[float]) -> ColumnElement[str]:
    """Return a time as replies write it, with milliseconds."""
    if tx.is_sqlite:
        return func.strftime("%Y-%m-%dT%H:%M:%fZ", column, "unixepoch")
    moment_utc = func.timezone("UTC", func.to_timestamp(column))
    return func.to_char(moment_utc, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')


def _span(value: str) -> tuple[float, float] | None:
    """Return the seconds that a time, or the beginning of one, stands for."""
    is_open = value.endswith("*")
    found = _PARTIAL_TIME.fullmatch(value.rstrip("*").removesuffix("Z").rstrip("-T:."))
    if found is None or (not is_open and found[6] is None):
        return None
    given = [part for part in found.groups() if part]
    whole = "".join(given) + _SHORTEST_TIME[len("".join(given)) :] * (found[7] is None)
    try:
        low = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None
    lengths = {1: 366 * 86400.0, 2: 31 * 86400.0, 3: 86400.0, 4: 3600.0, 5: 60.0, 6: 1.0}
    return low, low + lengths.get(len(given), 0.001)
