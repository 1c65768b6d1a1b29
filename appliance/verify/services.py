"""What a cluster needs besides its nodes: its store and its broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from appliance import seal
from appliance.cluster import brokers, logins, services
from appliance.cluster.management import Management
from appliance.config import Config
from appliance.errors import AnynodeError, Denied, Unavailable
from appliance.model import Finding
from appliance.store import cluster_secrets
from appliance.verify import codes
from appliance.verify.facts import read_store


def look_here(config: Config) -> Iterator[Finding]:
    """Yield what is wrong with the services of a cluster that are on this node."""
    for service in services.both(config.state_dir):
        if service.exists and service.process() is None:
            text = f"{service.name} in {service.folder} does not run."
            yield codes.SERVICE_DOWN.found(service.name, text)


def look_at_broker(config: Config) -> Iterator[Finding]:
    """Ask the broker for its alarms, and whether messages still move to it or away from it.

    It needs the key file and the store of a control node.
    """
    key_path = seal.key_path(config.state_dir)
    if config.bus.url == "local:" or not os.access(key_path, os.R_OK):
        return
    try:
        if read_store(config, lambda tx: cluster_secrets.sealed(tx, logins.ACCESS)) is None:
            return
        keys = seal.load(key_path)
        yield from _unfinished_move(read_store(config, lambda tx: brokers.last_move(tx, keys)))
        access = read_store(config, lambda tx: logins.stored_access(tx, keys))
        alarms = Management(access).alarms()
    except (Unavailable, Denied) as error:
        yield codes.BROKER_AWAY.found("the broker", error.message)
        return
    except AnynodeError as error:
        yield codes.UNREAD.found("the broker", f"Could not look at the broker: {error}")
        return
    for alarm in alarms:
        yield codes.BROKER_ALARM.found("the broker", f"The broker takes no messages: {alarm}.")


def _unfinished_move(move: brokers.Move | None) -> Iterator[Finding]:
    if move and not move.is_done:
        text = f"Messages move from {move.source.urls} to {move.target.urls}, and have not all."
        yield codes.MOVE_UNFINISHED.found("the broker", text)


def private_files(state_dir: Path) -> list[Path]:
    """Return the files of secrets that a cluster has on this node, there or not."""
    cluster = state_dir / "cluster"
    return [
        *(one.folder / "service.json" for one in services.both(state_dir)),
        *(cluster / name for name in ("node.key", "settings.json", "init.json")),
    ]
