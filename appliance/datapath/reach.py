"""Where the ports of this node's networks are that are on other nodes: what their plugins know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import AnynodeError, Stale
from appliance.hooks import Network
from appliance.model import NetworkReach, NetworkSpec, RemotePort

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Spanning:
    """A network of this node that spans nodes, and its plugin."""

    network: NetworkSpec
    driver: Network


@dataclass(kw_only=True)
class _Known:
    """What a plugin was told. Below 0 it is to be told the whole."""

    revision: int = -1
    remotes: dict[str, RemotePort]


class ReachKeeper:
    """Tells the plugins of networks that span nodes where the other ports are.

    What one cannot be told now is told whole the next time. The caller keeps calls about one
    network apart.

    :param spanning: returns a network and its plugin; ``None`` unless it is here and spans nodes.
    """

    def __init__(self, spanning: Callable[[str], Spanning | None]) -> None:
        self._spanning = spanning
        self._known: dict[str, _Known] = {}

    def revision(self, network_id: str) -> int | None:
        """Return the revision up to which the plugin knows; ``None`` when it need not know."""
        if self._spanning(network_id) is None:
            return None
        known = self._known.get(network_id)
        return known.revision if known else -1

    def update(self, network_id: str, reach: NetworkReach) -> None:
        """Tell a plugin what has changed. What it refuses is logged, and told whole later."""
        known = self._known.setdefault(network_id, _Known(remotes={}))
        if reach.is_whole:
            known.remotes = {}
        for port_id in reach.removed_port_ids:
            known.remotes.pop(port_id, None)
        known.remotes |= {remote.port_id: remote for remote in reach.remotes}
        known.revision = reach.revision
        self._tell(network_id, known, reach)

    def repeat(self, network_id: str) -> None:
        """Tell a plugin once more all that is known, where something of it was lost."""
        known = self._known.get(network_id)
        if known and known.revision >= 0:
            self._tell(network_id, known, _whole(known))

    def _tell(self, network_id: str, known: _Known, reach: NetworkReach) -> None:
        spanning = self._spanning(network_id)
        if spanning is None:
            return
        try:
            try:
                spanning.driver.reach(spanning.network, reach)
            except Stale:
                spanning.driver.reach(spanning.network, _whole(known))
        except AnynodeError as error:
            known.revision = -1
            log.warning("ports of %s on other nodes are not reached: %s", network_id, error)


def _whole(known: _Known) -> NetworkReach:
    return NetworkReach(
        revision=known.revision, remotes=tuple(known.remotes.values()), is_whole=True
    )
