"""What a network plugin means to have on this node, written before it is made.

The kernel is the truth of what there is; the record only says which of it is ours to put right or
to remove after a crash.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.errors import ConfigError
from appliance.files import write_whole
from appliance.model import NetworkSpec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Networks by id, and the network of each port by port id."""

    networks: dict[str, NetworkSpec] = {}
    ports: dict[str, str] = {}

    def with_network(self, network: NetworkSpec) -> Record:
        """Return the record with that network."""
        networks = {**self.networks, network.network_id: network}
        return msgspec.structs.replace(self, networks=networks)

    def without_network(self, network_id: str) -> Record:
        """Return the record without that network and its ports."""
        networks = {key: spec for key, spec in self.networks.items() if key != network_id}
        ports = {key: owner for key, owner in self.ports.items() if owner != network_id}
        return msgspec.structs.replace(self, networks=networks, ports=ports)

    def with_port(self, port_id: str, network_id: str) -> Record:
        """Return the record with that port."""
        return msgspec.structs.replace(self, ports={**self.ports, port_id: network_id})

    def without_port(self, port_id: str) -> Record:
        """Return the record without that port."""
        ports = {key: owner for key, owner in self.ports.items() if key != port_id}
        return msgspec.structs.replace(self, ports=ports)


class RecordFile:
    """The record on disk; every change replaces the file as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = self._read()

    def _read(self) -> Record:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"The record of networks {self._path} cannot be read: {error}.",
                hint="Move it away; bridges and taps are found by their marks in the kernel.",
            ) from error

    def write(self, value: Record) -> None:
        """Make the value durable, then current; nothing is written when nothing changed.

        :raises Unavailable: it could not be written; the value stays what it was.
        """
        if value == self.value:
            return
        write_whole(self._path, msgspec.json.encode(value))
        self.value = value
