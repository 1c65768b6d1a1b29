"""The folders of a node: made, held by one process, and what is remembered there."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from appliance.errors import ConfigError
from appliance.files import write_whole
from appliance.world import World


def make_folder(path: Path) -> None:
    """Make a folder that the hypervisor's user may pass through, and nobody may list."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o711)
    except OSError as error:
        raise ConfigError(
            f"Could not make {path}: {error.strerror}.",
            hint="Run as root, or set node.state_dir and node.run_dir to folders of yours.",
        ) from error


def lock(run_dir: Path) -> IO[str]:
    """Hold a node's folders until the answer is closed or this process ends.

    :raises ConfigError: another process holds them.
    """
    path = run_dir / "node.lock"
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"Another node runs on {path.parent}.", hint="`anynode status` shows it."
        ) from error
    return file


def remembered_id(path: Path, world: World) -> str:
    """Return the id in a file, making it the first time."""
    if not path.exists():
        write_whole(path, f"{world.ids.uuid()}\n".encode(), mode=0o644)
    found = path.read_text(encoding="ascii").strip()
    if not found:
        raise ConfigError(
            f"The file {path} is empty: this node has lost its id.",
            hint="Write it anew from the store's list of nodes (`anynode status --json`).",
        )
    return found
