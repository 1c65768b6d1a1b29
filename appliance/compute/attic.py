"""Setting files of instances aside that do not belong here any more: they may be of value."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.errors import Unavailable

ATTIC = "attic"


def set_aside(state_dir: Path, folder: Path) -> Path | None:
    """Move an instance's folder to the attic; ``None`` when there is no folder.

    Nothing is ever deleted there by this program.

    :raises Unavailable: it could not be moved; it is where it was.
    """
    attic = state_dir / ATTIC
    target = attic / f"{folder.name}.{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**6:06d}"
    try:
        attic.mkdir(mode=0o700, exist_ok=True)
        folder.rename(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"Could not set {folder} aside: {error.strerror}.") from error
    return target
