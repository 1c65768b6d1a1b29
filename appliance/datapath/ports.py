"""The ports of a node: in its journal, and by address for those who ask who is there."""

from __future__ import annotations

import threading

import msgspec

from appliance.datapath.record import PORT, PortRecord
from appliance.journal import Journal
from appliance.world import Clock


class Ports:
    """What the node knows of its ports; several threads may ask and write.

    Only ports that are attached have their addresses.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, PortRecord] = {}
        self._holders: dict[tuple[str, str], list[str]] = {}
        self._came_at: dict[str, float] = {}
        for record in journal.all(PORT, PortRecord).values():
            self._keep(record)

    def get(self, port_id: str) -> PortRecord | None:
        """Return a port; ``None`` when it is unknown."""
        with self._lock:
            return self._records.get(port_id)

    def all(self) -> list[PortRecord]:
        """Return all ports."""
        with self._lock:
            return list(self._records.values())

    def at(self, network_id: str, address: str) -> PortRecord | None:
        """Return the port that has an address; ``None`` when it is not known for certain."""
        with self._lock:
            holders = self._holders.get((network_id, address), ())
            # Of two, one is stale: rather nobody's identity than another's.
            return self._records[holders[0]] if len(holders) == 1 else None

    def rivals(self, port_id: str, network_id: str, address: str) -> list[PortRecord]:
        """Return the other ports that have an address."""
        with self._lock:
            holders = self._holders.get((network_id, address), ())
            return [self._records[holder] for holder in holders if holder != port_id]

    def age_s(self, port_id: str) -> float:
        """Return the seconds since it was attached last, or since this process began.

        0 when it is unknown.
        """
        with self._lock:
            now = self._clock.monotonic()
            return now - self._came_at.get(port_id, now)

    def put(self, record: PortRecord) -> None:
        """Write a port that is to be attached."""
        with self._lock:
            self._journal.put(PORT, record.port.port_id, record)
            self._forget(record.port.port_id)
            self._keep(record)

    def note(self, port_id: str, **changes: bool) -> None:
        """Write what there is of a port, and forget it when there is nothing any more.

        No error when it is unknown.
        """
        with self._lock:
            before = self._records.get(port_id)
            if before is None:
                return
            record = msgspec.structs.replace(before, **changes)
            came_at = self._came_at[port_id]
            if record.is_attached or record.is_guarded:
                self._journal.put(PORT, port_id, record)
                self._forget(port_id)
                self._keep(record)
                self._came_at[port_id] = came_at
            else:
                self._journal.delete(PORT, port_id)
                self._forget(port_id)

    def _keep(self, record: PortRecord) -> None:
        port = record.port
        self._records[port.port_id] = record
        self._came_at[port.port_id] = self._clock.monotonic()
        if record.is_attached:
            for address in port.addresses:
                self._holders.setdefault((port.network_id, address), []).append(port.port_id)

    def _forget(self, port_id: str) -> None:
        self._came_at.pop(port_id, None)
        record = self._records.pop(port_id, None)
        if record is None or not record.is_attached:
            return
        for address in record.port.addresses:
            place = record.port.network_id, address
            self._holders[place].remove(port_id)
            if not self._holders[place]:
                del self._holders[place]
