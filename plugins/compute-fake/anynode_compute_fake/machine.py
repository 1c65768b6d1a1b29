"""Instances that exist only as records."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.errors import Conflict, NotFound
from appliance.hookspecs import hookimpl
from appliance.model import (
    SHUT_ITSELF_DOWN,
    ConsoleOutput,
    InstanceDefinition,
    InstanceFact,
    NodeCapacity,
    PowerEvent,
    PowerState,
)


class FakeInstance(msgspec.Struct, kw_only=True):
    """One instance. ``console`` is what it has printed since it was first defined."""

    definition: InstanceDefinition
    power: PowerState = PowerState.SHUT_OFF
    detail: str = ""
    console: str = ""
    written_at: float = 0.0


class FakeCompute:
    """The hooks of a hypervisor, and :meth:`crash` for tests; safe for several threads.

    ``record_path`` is a file that holds the instances, so that they are there again after the
    process was killed; ``None`` keeps them in memory only.
    """

    def __init__(
        self,
        *,
        vcpus: int = 64,
        memory_mib: int = 262_144,
        disk_gib: int = 4_096,
        transition_s: float = 0.0,
        record_path: Path | None = None,
    ) -> None:
        self._capacity = NodeCapacity(
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_gib=disk_gib,
            memory_free_mib=memory_mib,
            disk_free_gib=disk_gib,
            hypervisor="fake",
            accelerator="fake",
        )
        self._transition_s = transition_s
        self._record_path = record_path
        self._changed = threading.Condition(threading.RLock())
        self._events: list[PowerEvent] = []
        self._instances: dict[str, FakeInstance] = {}
        if record_path and record_path.exists():
            self._instances = msgspec.json.decode(
                record_path.read_bytes(), type=dict[str, FakeInstance]
            )

    @property
    def is_in_memory(self) -> bool:
        """Whether no other process can see the instances."""
        return self._record_path is None

    @hookimpl
    def compute_define(self, definition: InstanceDefinition) -> None:
        with self._changed:
            known = self._instances.get(definition.instance_id)
            if known is None:
                self._instances[definition.instance_id] = FakeInstance(definition=definition)
            elif known.definition == definition:
                return
            elif known.power in (PowerState.RUNNING, PowerState.PAUSED):
                raise Conflict(
                    f"Instance {definition.instance_id} runs with another definition.",
                    hint="Power it off first.",
                )
            else:
                known.definition = definition
            self._record()

    @hookimpl
    def compute_start(self, instance_id: str) -> None:
        if self._known(instance_id).power is not PowerState.RUNNING:
            self._change(instance_id, PowerState.RUNNING, "", "booting\nready\n")

    @hookimpl
    def compute_shut_down(self, instance_id: str) -> None:
        if self._known(instance_id).power is PowerState.RUNNING:
            self._change(instance_id, PowerState.SHUT_OFF, SHUT_ITSELF_DOWN, "shutting down\n")

    @hookimpl
    def compute_power_off(self, instance_id: str) -> None:
        with self._changed:
            instance = self._instances.get(instance_id)
        if instance and instance.power in (PowerState.RUNNING, PowerState.PAUSED):
            self._change(instance_id, PowerState.SHUT_OFF, "its power was taken away", "")

    @hookimpl
    def compute_reboot(self, instance_id: str, is_forced: bool) -> None:
        if self._known(instance_id).power is not PowerState.RUNNING:
            raise Conflict(f"Could not reboot instance {instance_id}: it is not running.")
        text = "reset\n" if is_forced else "rebooting\n"
        self._change(instance_id, PowerState.RUNNING, "", f"{text}booting\nready\n")

    @hookimpl
    def compute_remove(self, instance_id: str) -> None:
        self.compute_power_off(instance_id)
        with self._changed:
            if self._instances.pop(instance_id, None):
                self._record()

    @hookimpl
    def compute_list(self) -> Sequence[InstanceFact]:
        with self._changed:
            return [
                InstanceFact(
                    instance_id=instance_id,
                    epoch=instance.definition.epoch,
                    power=instance.power,
                    detail=instance.detail,
                )
                for instance_id, instance in self._instances.items()
            ]

    @hookimpl
    def compute_events(self, wait_s: float) -> Sequence[PowerEvent]:
        with self._changed:
            self._changed.wait_for(lambda: self._events, wait_s)
            events, self._events = self._events, []
            return events

    @hookimpl
    def compute_capacity(self) -> NodeCapacity:
        return self._capacity

    @hookimpl
    def compute_console(self, instance_id: str, directory: str, tail_bytes: int) -> ConsoleOutput:
        with self._changed:
            instance = self._instances.get(instance_id)
            if instance is None:
                return ConsoleOutput(text=b"", written_at=0.0)
            text = instance.console.encode()
            return ConsoleOutput(
                text=text[max(0, len(text) - tail_bytes) :], written_at=instance.written_at
            )

    def crash(self, instance_id: str) -> None:
        """End a running instance as if its process had died; for tests.

        :raises NotFound: there is no such instance.
        :raises Conflict: it is not running.
        """
        if self._known(instance_id).power is not PowerState.RUNNING:
            raise Conflict(f"Instance {instance_id} is not running, so it cannot crash.")
        self._change(instance_id, PowerState.CRASHED, "it crashed", "")

    def _known(self, instance_id: str) -> FakeInstance:
        with self._changed:
            if instance_id not in self._instances:
                raise NotFound(f"The hypervisor knows no instance {instance_id}.")
            return self._instances[instance_id]

    def _change(self, instance_id: str, power: PowerState, detail: str, printed: str) -> None:
        if self._transition_s:
            time.sleep(self._transition_s)
        with self._changed:
            instance = self._known(instance_id)
            instance.power, instance.detail = power, detail
            if printed:
                instance.console += printed
                instance.written_at = time.time()
            self._record()
            self._events.append(PowerEvent(instance_id=instance_id, power=power, detail=detail))
            self._changed.notify_all()

    def _record(self) -> None:
        """Write all instances down, whole or not at all."""
        if self._record_path is None:
            return
        partial = self._record_path.with_suffix(".new")
        with open(partial, "wb") as file:
            file.write(msgspec.json.encode(self._instances))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._record_path)
