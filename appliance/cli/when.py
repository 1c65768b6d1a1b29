"""Times on the command line: durations such as ``90s`` and ``7d``, and moments."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)


class Duration(click.ParamType[float]):
    """A number with a unit; becomes seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 30m, 24h, 7d or 2w.", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Moment(click.ParamType[float]):
    """A date, a date with a time of this machine's clock, or how long ago; becomes seconds."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds since the epoch."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value))
        if found is not None:
            return time.time() - float(found[1]) * _UNITS_S[found[2]]
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is no time; write 2026-01-31, '2026-01-31 12:00' or 24h (ago).",
                param,
                ctx,
            )
