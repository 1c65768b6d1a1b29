"""The members of a cluster as one of them knows them, also while it cannot ask."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from appliance.files import write_whole
from appliance.messages import Members
from appliance.model import Member

log = logging.getLogger(__name__)

NONE_YET = Members(revision=-1)


class MemberList:
    """The last list of members that this node was told, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._current = _read(path)
        self._changing = threading.Lock()
        self._listeners: list[Callable[[Members], None]] = []

    @property
    def current(self) -> Members:
        """The list; without members and of revision -1 when none was ever heard."""
        return self._current

    def take(self, told: Members) -> bool:
        """Go by a list of another revision than the known one; say whether it is one.

        :raises OSError: it could not be written down; it is gone by all the same.
        """
        with self._changing:
            if told.revision == self._current.revision or not told.members:
                return False
            self._current = told
        for listener in self._listeners:
            listener(told)
        write_whole(self._path, msgspec.json.encode(told), mode=0o600)
        return True

    def on_change(self, listener: Callable[[Members], None]) -> None:
        """Call ``listener`` with each new list."""
        self._listeners.append(listener)

    @property
    def revoked(self) -> Collection[str]:
        """The serial numbers, hexadecimal, of certificates that no longer count."""
        return self._current.revoked

    def get(self, node_id: str) -> Member | None:
        """Return a member; ``None`` when there is none of that id."""
        found = (one for one in self._current.members if one.node_id == node_id)
        return next(found, None)

    def with_role(self, role: str) -> list[Member]:
        """Return the members that have a role, those that are down last."""
        having = [one for one in self._current.members if role in one.roles]
        return sorted(having, key=lambda one: not one.is_up)


def _read(path: Path) -> Members:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Members)
    except FileNotFoundError:
        return NONE_YET
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the list of members %s cannot be read, and is asked for: %s", path, error)
        return NONE_YET
