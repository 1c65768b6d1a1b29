"""Power states: libvirt's numbers in our words, and the changes that nobody has fetched yet."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import libvirt

from appliance.model import SHUT_ITSELF_DOWN, InstanceFact, PowerEvent, PowerState

_MOST_EVENTS = 10_000
_LOOK_EVERY_S = 1.0

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    # It has been asked to shut down, or has just done so and QEMU is about to end.
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUT_OFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
}
_SHUT_OFF_REASONS = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: SHUT_ITSELF_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "its power was taken away",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "it crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "it could not be started",
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: "its QEMU process ended while libvirtd was away",
}
_CRASHES = frozenset({libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_DAEMON})
_PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "a disk failed or is full",
    libvirt.VIR_DOMAIN_PAUSED_USER: "somebody paused it",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "its watchdog fired",
}
_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: (PowerState.SHUT_OFF, SHUT_ITSELF_DOWN),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: (
        PowerState.SHUT_OFF,
        "its power was taken away",
    ),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: (PowerState.CRASHED, "it crashed"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: (
        PowerState.CRASHED,
        "its QEMU process ended unexpectedly",
    ),
}


def power_of_state(state: int, reason: int) -> tuple[PowerState, str]:
    """Return state and detail for libvirt's state and reason."""
    power = _STATES.get(state, PowerState.CRASHED)
    if power is PowerState.SHUT_OFF:
        if reason in _CRASHES:
            power = PowerState.CRASHED
        return power, _SHUT_OFF_REASONS.get(reason, "")
    if power is PowerState.PAUSED:
        return power, _PAUSE_REASONS.get(reason, "")
    return power, ""


def power_of_event(event: int, detail: int) -> tuple[PowerState, str] | None:
    """Return state and detail that a life-cycle event leads to; ``None`` when to none."""
    if event in (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED):
        return PowerState.RUNNING, ""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        return _STOPPED.get(detail, (PowerState.SHUT_OFF, ""))
    if event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
        return PowerState.CRASHED, "its system panicked"
    if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
        is_disk = detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR
        return PowerState.PAUSED, "a disk failed or is full" if is_disk else ""
    return None


class PowerWatch:
    """Changes of power state since the last time somebody asked; safe for several threads.

    It remembers the last known state of each instance, so that a change that no event told of
    (libvirtd was away, or was just coming back) is found by comparing.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[PowerEvent] = deque(maxlen=_MOST_EVENTS)
        self._known: dict[str, PowerState] = {}
        self._moment = 0
        self._changed_at: dict[str, int] = {}

    def moment(self) -> int:
        """Return a number to give to :meth:`compare`; taken before the facts are gathered."""
        with self._changed:
            return self._moment

    def tell(self, event: PowerEvent) -> None:
        """Put an event where the next :meth:`drain` finds it."""
        with self._changed:
            self._remember(event.instance_id, event.power)
            self._events.append(event)
            self._changed.notify_all()

    def note(self, instance_id: str, power: PowerState) -> None:
        """Remember a state that is no news."""
        with self._changed:
            self._remember(instance_id, power)

    def compare(self, facts: Iterable[InstanceFact], since: int) -> None:
        """Tell of each known instance whose state is another one, and forget those that are gone.

        An instance that changed after the moment ``since`` is left alone: the fact is older.
        """
        with self._changed:
            gone = {key for key in self._known if self._changed_at[key] <= since}
            for fact in facts:
                gone.discard(fact.instance_id)
                if self._changed_at.get(fact.instance_id, 0) > since:
                    continue
                before = self._known.get(fact.instance_id)
                if before is not None and before is not fact.power:
                    self._events.append(
                        PowerEvent(
                            instance_id=fact.instance_id, power=fact.power, detail=fact.detail
                        )
                    )
                    self._changed.notify_all()
                if before is not fact.power:
                    self._remember(fact.instance_id, fact.power)
            for instance_id in gone:
                del self._known[instance_id], self._changed_at[instance_id]

    def _remember(self, instance_id: str, power: PowerState) -> None:
        self._moment += 1
        self._known[instance_id] = power
        self._changed_at[instance_id] = self._moment

    def drain(self, wait_s: float, meanwhile: Callable[[], None]) -> tuple[PowerEvent, ...]:
        """Return all events, waiting up to ``wait_s`` seconds for the first.

        ``meanwhile`` is called at once and then every second.
        """
        end = time.monotonic() + wait_s
        while True:
            meanwhile()
            with self._changed:
                left = end - time.monotonic()
                if not self._events and left > 0:
                    self._changed.wait(min(left, _LOOK_EVERY_S))
                if self._events or time.monotonic() >= end:
                    found = tuple(self._events)
                    self._events.clear()
                    return found
