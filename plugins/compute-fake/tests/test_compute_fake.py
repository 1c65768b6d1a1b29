"""The hypervisor in memory keeps the contract, and its instances can outlive the process."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from anynode_compute_fake.machine import FakeCompute

from appliance.errors import Conflict, NotFound
from appliance.hooks import Compute
from appliance.model import InstanceDefinition, PowerState
from appliance.testing.compute import ONE, ComputeContract, MakeDefinition, facts


class TestFakeCompute(ComputeContract):
    @pytest.fixture
    def fake(self) -> FakeCompute:
        return FakeCompute()

    @pytest.fixture
    def driver(self, fake: FakeCompute) -> Compute:
        return Compute("fake", fake)

    @pytest.fixture
    def crash(self, fake: FakeCompute) -> Callable[[str], None]:
        return fake.crash

    def test_shut_down_is_obeyed(self, driver: Compute, running: InstanceDefinition) -> None:
        driver.shut_down(ONE)
        assert facts(driver)[ONE].power is PowerState.SHUT_OFF
        assert driver.console(ONE, running.directory, 1000).text.endswith(b"shutting down\n")

    def test_only_what_runs_can_crash(
        self, fake: FakeCompute, driver: Compute, make_definition: MakeDefinition
    ) -> None:
        with pytest.raises(NotFound):
            fake.crash(ONE)
        driver.define(make_definition(ONE, 1))
        with pytest.raises(Conflict):
            fake.crash(ONE)

    def test_instances_outlive_the_process(
        self, tmp_path: Path, make_definition: MakeDefinition
    ) -> None:
        record = tmp_path / "instances.json"
        before = Compute("fake", FakeCompute(record_path=record))
        definition = make_definition(ONE, 4)
        before.define(definition)
        before.start(ONE)
        after = Compute("fake", FakeCompute(record_path=record))
        assert after.list() == before.list()
        assert after.console(ONE, "", 1000) == before.console(ONE, "", 1000)
        after.define(definition)
        after.remove(ONE)
        assert Compute("fake", FakeCompute(record_path=record)).list() == ()

    def test_transitions_take_their_time(self, make_definition: MakeDefinition) -> None:
        slow = Compute("fake", FakeCompute(transition_s=0.05))
        slow.define(make_definition(ONE, 1))
        started = time.monotonic()
        slow.start(ONE)
        assert time.monotonic() - started >= 0.05
