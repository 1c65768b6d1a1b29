"""The networks of a node: their plugins, what the journal knows of them, and what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.datapath.reach import Spanning
from appliance.datapath.record import NETWORK, NetworkRecord
from appliance.hooks import Network
from appliance.journal import Journal
from appliance.model import NetworkSpec
from appliance.node import NodeParts


class Networks:
    """Prepares networks through their plugins; ``prepared`` is called with each that is there."""

    def __init__(
        self, parts: NodeParts, journal: Journal, prepared: Callable[[NetworkSpec], None]
    ) -> None:
        self._parts = parts
        self._journal = journal
        self._prepared = prepared
        self._records = journal.all(NETWORK, NetworkRecord)
        self._drivers: dict[str, Network] = {}
        self._making = threading.Lock()
        self._preparing = threading.Lock()

    def get(self, network_id: str) -> NetworkSpec | None:
        """Return a network; ``None`` when it is unknown."""
        record = self._records.get(network_id)
        return record.network if record else None

    def all(self) -> list[NetworkSpec]:
        """Return all networks."""
        return [record.network for record in list(self._records.values())]

    def driver(self, name: str) -> Network:
        """Return the plugin of a type of network."""
        # One at a time: two objects of one plugin would not know of each other's locks.
        with self._making:
            driver = self._drivers.get(name)
            if driver is None:
                driver = Network(name, self._parts.plugin(Network.group, name))
                self._drivers[name] = driver
            return driver

    def driver_of(self, network_id: str) -> Network | None:
        """Return the plugin of a network; ``None`` when the network is unknown."""
        network = self.get(network_id)
        return self.driver(network.type) if network else None

    def spanning(self, network_id: str) -> Spanning | None:
        """Return a network with its plugin; ``None`` unless it is here and spans nodes."""
        network = self.get(network_id)
        if network is None:
            return None
        driver = self.driver(network.type)
        return Spanning(network=network, driver=driver) if driver.spans_nodes else None

    def prepare(self, network: NetworkSpec) -> None:
        """Make what a network needs on this node, or put it right."""
        # One at a time: the first ports of a network come at once, and so may a repair.
        with self._preparing:
            self.driver(network.type).prepare(network)
            self._prepared(network)

    def ensure(self, network: NetworkSpec) -> None:
        """Make a network that is not here yet, or is another one by now, and remember it."""
        if self.get(network.network_id) == network:
            return
        self.prepare(network)
        record = NetworkRecord(network=network)
        self._journal.put(NETWORK, network.network_id, record)
        self._records[network.network_id] = record

    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Return what is wrong, by type of network; types of which all is well are left out."""
        found = {name: self.driver(name).list().warnings for name in self._types()}
        return {name: warnings for name, warnings in found.items() if warnings}

    def _types(self) -> list[str]:
        return sorted({network.type for network in self.all()})
