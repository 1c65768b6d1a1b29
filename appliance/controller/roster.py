"""Who is in the cluster: answered to members, and told to all of them when it has changed."""

from __future__ import annotations

import logging
import threading

from appliance.bus.topology import MEMBER_TOPIC
from appliance.messages import GetMembers, Members, MembersChanged
from appliance.node import NodeParts
from appliance.store import members

log = logging.getLogger(__name__)


class Roster:
    """The list of members as this controller tells of it.

    Whoever writes a change, a command for example, may have no bus to tell it by: a controller
    that first sees it does.
    """

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._told = -1
        self._lock = threading.Lock()

    def answer(self, question: GetMembers) -> Members:
        """Answer who is in the cluster, and tell all members of a change that is new here."""
        store = self._parts.need_store()
        found = store.read(lambda tx: members.answer(tx, question))
        with self._lock:
            is_news, self._told = found.revision != self._told, found.revision
        if is_news:
            log.info("revision %d of the members", found.revision)
            self._parts.bus.announce(MEMBER_TOPIC, MembersChanged(revision=found.revision))
        return found
