"""Setting files of instances aside that do not belong here any more: they may be of value."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from appliance.errors import Unavailable

log = logging.getLogger(__name__)

ATTIC = "attic"
_MOMENT = "%Y%m%dT%H%M%S"


def set_aside(state_dir: Path, folder: Path) -> Path | None:
    """Move an instance's folder to the attic; ``None`` when there is no folder.

    Until :func:`clear` deletes it there it can be taken back by hand.

    :raises Unavailable: it could not be moved; it is where it was.
    """
    attic = state_dir / ATTIC
    target = attic / f"{folder.name}.{time.strftime(_MOMENT)}-{time.time_ns() % 10**6:06d}"
    try:
        attic.mkdir(mode=0o700, exist_ok=True)
        folder.rename(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"Could not set {folder} aside: {error.strerror}.") from error
    return target


def clear(state_dir: Path, age_s: float, now: float) -> tuple[str, ...]:
    """Delete what was set aside longer ago than that; return the names of what has gone.

    What bears another name than this program gives stays. Safe to repeat; what cannot be deleted
    is logged, and tried at the next call.
    """
    gone = []
    for entry in sorted((state_dir / ATTIC).glob("*")):
        moment = _set_aside_at(entry.name)
        if moment is None or now - moment <= age_s:
            continue
        try:
            shutil.rmtree(entry)
        except OSError as error:
            log.warning("could not delete %s, which was set aside: %s", entry, error.strerror)
            continue
        days = (now - moment) / 86400
        log.info("deleted %s, which was set aside %.0f days ago", entry.name, days)
        gone.append(entry.name)
    return tuple(gone)


def _set_aside_at(name: str) -> float | None:
    """Return when that was set aside; ``None`` for what was not by this program."""
    moment, dash, _ = name.rpartition(".")[2].partition("-")
    try:
        return time.mktime(time.strptime(moment, _MOMENT)) if dash else None
    except ValueError:
        return None
