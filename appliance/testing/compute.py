"""The contract of ``appliance.compute``: subclass it and give it your plugin.

Override ``driver``, the facade around your plugin on a node of its own without instances; a plugin
that needs real disks overrides ``make_definition``; one that can be made to crash from outside
overrides ``crash``. Every test removes the instances that it defined.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from appliance.errors import AnynodeError, Conflict, NotFound
from appliance.hooks import Compute
from appliance.model import InstanceDefinition, InstanceFact, PowerEvent, PowerState

ONE = "i-0000000000000c001"
TWO = "i-0000000000000c002"
UNKNOWN = "i-0000000000000cfff"

HOSTILE_TEXTS = (
    "</name><name>other",
    "&amp; &lt; ' \" ]]>",
    "a\nb",
    "a\0b",
    "\x07\x1b[31m",
    "\udcff",
    "ä😀",
    "a" * 5000,
)

MakeDefinition = Callable[[str, int], InstanceDefinition]
"""Returns a definition for an instance id and an epoch; its directory exists."""


def facts(driver: Compute) -> dict[str, InstanceFact]:
    """Return what the driver lists, by instance."""
    listed = driver.list()
    by_id = {fact.instance_id: fact for fact in listed}
    assert len(by_id) == len(listed), "an instance is listed twice"
    return by_id


def wait_for_power(
    driver: Compute, instance_id: str, power: PowerState, deadline_s: float
) -> InstanceFact:
    """Return the instance's fact once it has that power state; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while (fact := facts(driver)[instance_id]).power is not power:
        assert time.monotonic() < end, f"{fact} did not become {power} within {deadline_s:g} s"
        time.sleep(0.02)
    return fact


def wait_for_event(
    driver: Compute, instance_id: str, power: PowerState, deadline_s: float
) -> PowerEvent:
    """Return the event that tells of that power state; fail after the deadline."""
    end = time.monotonic() + deadline_s
    seen: list[PowerEvent] = []
    while time.monotonic() < end:
        seen += driver.events(0.2)
        for event in seen:
            if event.instance_id == instance_id and event.power is power:
                return event
    raise AssertionError(f"no event {power} of {instance_id} in {seen}")


class ComputeContract:
    """What every compute plugin must do."""

    @pytest.fixture
    def driver(self) -> Compute:
        """Return the facade around the plugin."""
        raise NotImplementedError("Override this fixture.")

    @pytest.fixture
    def make_definition(self, tmp_path: Path) -> MakeDefinition:
        """Return a maker of definitions without disks and cards."""

        def make(instance_id: str, epoch: int) -> InstanceDefinition:
            directory = tmp_path / instance_id
            directory.mkdir(exist_ok=True)
            return InstanceDefinition(
                instance_id=instance_id,
                epoch=epoch,
                name="contract",
                directory=str(directory),
                vcpus=1,
                memory_mib=128,
                disks=(),
                taps=(),
            )

        return make

    @pytest.fixture
    def crash(self) -> Callable[[str], None]:
        """Return what ends a running instance as if its process had died."""
        raise NotImplementedError("Override this fixture.")

    @pytest.fixture
    def patience_s(self) -> float:
        """Return how long a change of power state may take to be seen, seconds."""
        return 10.0

    @pytest.fixture(autouse=True)
    def clean_node(self, driver: Compute) -> Iterator[None]:
        """Start without events of earlier tests, and remove what a test has left."""
        driver.events(0)
        yield
        for fact in driver.list():
            driver.remove(fact.instance_id)

    @pytest.fixture
    def running(self, driver: Compute, make_definition: MakeDefinition) -> InstanceDefinition:
        """Return the definition of an instance that was started."""
        definition = make_definition(ONE, 1)
        driver.define(definition)
        driver.start(ONE)
        return definition

    def test_empty_node_has_no_instances(self, driver: Compute) -> None:
        assert driver.list() == ()

    def test_defined_instance_is_off(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        driver.define(make_definition(ONE, 7))
        fact = facts(driver)[ONE]
        assert (fact.epoch, fact.power) == (7, PowerState.SHUT_OFF)

    def test_define_twice_changes_nothing(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        driver.define(make_definition(ONE, 7))
        driver.define(make_definition(ONE, 7))
        assert list(facts(driver)) == [ONE]

    def test_define_replaces_an_older_definition(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        driver.define(make_definition(ONE, 1))
        driver.define(msgspec.structs.replace(make_definition(ONE, 2), name="renamed", vcpus=2))
        assert facts(driver)[ONE].epoch == 2

    def test_running_instance_is_not_redefined(
        self, driver: Compute, running: InstanceDefinition
    ) -> None:
        driver.define(running)
        with pytest.raises(Conflict):
            driver.define(msgspec.structs.replace(running, epoch=2))
        fact = facts(driver)[ONE]
        assert (fact.epoch, fact.power) == (1, PowerState.RUNNING)

    @pytest.mark.parametrize("text", HOSTILE_TEXTS)
    def test_hostile_texts_stay_texts(
        self, driver: Compute, make_definition: MakeDefinition, text: str
    ) -> None:
        definition = msgspec.structs.replace(
            make_definition(ONE, 1), name=text, kernel_command_line=f"x={text}"
        )
        try:
            driver.define(definition)
        except AnynodeError:
            assert driver.list() == ()
        else:
            assert list(facts(driver)) == [ONE]

    def test_start_runs_and_tells(
        self, driver: Compute, running: InstanceDefinition, patience_s: float
    ) -> None:
        assert facts(driver)[ONE].power is PowerState.RUNNING
        wait_for_event(driver, ONE, PowerState.RUNNING, patience_s)
        driver.start(ONE)
        assert facts(driver)[ONE].power is PowerState.RUNNING

    def test_unknown_instance_cannot_be_started(self, driver: Compute) -> None:
        with pytest.raises(NotFound):
            driver.start(UNKNOWN)
        with pytest.raises(NotFound):
            driver.shut_down(UNKNOWN)
        assert driver.list() == ()

    def test_power_off_is_off_when_it_returns(
        self, driver: Compute, running: InstanceDefinition, patience_s: float
    ) -> None:
        driver.power_off(ONE)
        assert facts(driver)[ONE].power is PowerState.SHUT_OFF
        wait_for_event(driver, ONE, PowerState.SHUT_OFF, patience_s)
        driver.power_off(ONE)
        driver.start(ONE)
        assert facts(driver)[ONE].power is PowerState.RUNNING

    def test_power_off_of_an_unknown_instance_is_no_error(self, driver: Compute) -> None:
        driver.power_off(UNKNOWN)

    def test_shut_down_of_an_instance_that_is_off_is_no_error(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        driver.define(make_definition(ONE, 1))
        driver.shut_down(ONE)
        assert facts(driver)[ONE].power is PowerState.SHUT_OFF

    def test_forced_reboot_keeps_it_running(
        self, driver: Compute, running: InstanceDefinition
    ) -> None:
        driver.reboot(ONE, is_forced=True)
        assert facts(driver)[ONE].power is PowerState.RUNNING

    @pytest.mark.parametrize("is_forced", [False, True])
    def test_only_a_running_instance_is_rebooted(
        self, driver: Compute, make_definition: MakeDefinition, is_forced: bool
    ) -> None:
        driver.define(make_definition(ONE, 1))
        with pytest.raises(Conflict):
            driver.reboot(ONE, is_forced=is_forced)
        assert facts(driver)[ONE].power is PowerState.SHUT_OFF

    def test_remove_forgets_a_running_instance_and_keeps_its_files(
        self, driver: Compute, running: InstanceDefinition
    ) -> None:
        note = Path(running.directory, "note")
        note.write_text("stays")
        driver.remove(ONE)
        assert driver.list() == ()
        assert note.read_text() == "stays"
        driver.remove(ONE)

    def test_removed_instance_comes_back_at_a_higher_epoch(
        self, driver: Compute, running: InstanceDefinition
    ) -> None:
        driver.remove(ONE)
        driver.define(msgspec.structs.replace(running, epoch=2))
        fact = facts(driver)[ONE]
        assert (fact.epoch, fact.power) == (2, PowerState.SHUT_OFF)

    def test_instances_are_independent(
        self, driver: Compute, running: InstanceDefinition, make_definition: MakeDefinition
    ) -> None:
        driver.define(make_definition(TWO, 9))
        driver.power_off(TWO)
        driver.remove(TWO)
        assert facts(driver)[ONE].power is PowerState.RUNNING

    def test_several_threads_may_call_at_once(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        def live(definition: InstanceDefinition) -> list[PowerState]:
            driver.define(definition)
            driver.start(definition.instance_id)
            seen = [facts(driver)[definition.instance_id].power]
            driver.power_off(definition.instance_id)
            seen.append(facts(driver)[definition.instance_id].power)
            driver.remove(definition.instance_id)
            return seen

        definitions = [make_definition(f"i-0000000000000d{number:03x}", 1) for number in range(4)]
        with ThreadPoolExecutor() as pool:
            lives = list(pool.map(live, definitions))
        assert lives == [[PowerState.RUNNING, PowerState.SHUT_OFF]] * 4
        assert driver.list() == ()

    def test_crash_is_told(
        self,
        driver: Compute,
        running: InstanceDefinition,
        crash: Callable[[str], None],
        patience_s: float,
    ) -> None:
        crash(ONE)
        event = wait_for_event(driver, ONE, PowerState.CRASHED, patience_s)
        assert event.detail
        assert facts(driver)[ONE].power is PowerState.CRASHED
        driver.start(ONE)
        assert facts(driver)[ONE].power is PowerState.RUNNING

    def test_events_wait_so_long_and_no_longer(self, driver: Compute) -> None:
        started = time.monotonic()
        assert driver.events(0.3) == ()
        assert 0.25 < time.monotonic() - started < 2

    def test_an_event_ends_the_wait(
        self, driver: Compute, running: InstanceDefinition, patience_s: float
    ) -> None:
        wait_for_event(driver, ONE, PowerState.RUNNING, patience_s)
        while driver.events(0.2):
            pass
        other = threading.Thread(target=driver.power_off, args=(ONE,))
        started = time.monotonic()
        other.start()
        events = driver.events(60)
        other.join()
        assert time.monotonic() - started < 30
        assert {event.instance_id for event in events} == {ONE}

    def test_capacity_is_plausible(self, driver: Compute) -> None:
        capacity = driver.capacity()
        assert capacity.vcpus > 0
        assert 0 < capacity.memory_free_mib <= capacity.memory_mib
        assert 0 <= capacity.disk_free_gib <= capacity.disk_gib
        assert capacity.hypervisor
        assert capacity.accelerator

    def test_console_of_a_silent_instance_is_empty(
        self, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        definition = make_definition(ONE, 1)
        driver.define(definition)
        assert driver.console(ONE, definition.directory, 1000).text == b""

    def test_console_answers_its_end_also_after_a_stop(
        self, driver: Compute, running: InstanceDefinition, patience_s: float
    ) -> None:
        end = time.monotonic() + patience_s
        while not driver.console(ONE, running.directory, 10_000).text:
            assert time.monotonic() < end, "it printed nothing"
            time.sleep(0.02)
        driver.power_off(ONE)
        whole = driver.console(ONE, running.directory, 1_000_000)
        assert whole.written_at > 0
        assert driver.console(ONE, running.directory, 5).text == whole.text[-5:]
        assert driver.console(ONE, running.directory, 0).text == b""
