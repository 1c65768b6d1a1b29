"""Every step of a launch, a stop and a removal fails once, before and after its effect."""

from __future__ import annotations

import pytest

from appliance.compute import worker
from appliance.compute.launch import LAUNCH, REMOVAL, STOP
from appliance.compute.subject import Subject
from appliance.model import InstanceState
from appliance.steps import Step
from appliance.store import timeline
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until

pytestmark = pytest.mark.faults("fail: each step, in memory", quick=True)

MOMENTS = ("before", "after")


def points(steps: tuple[Step[Subject], ...]) -> list[str]:
    return [f"step.{step.name}.{moment}" for step in steps for moment in MOMENTS]


def assert_nothing_left(chain: Chain) -> None:
    assert chain.machine.compute.compute_list() == []
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().taps == ()
    assert list((chain.config.state_dir / "instances").iterdir()) == []
    assert chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}


@pytest.mark.parametrize("point", points(LAUNCH))
def test_a_launch_that_fails_leaves_nothing(chain: Chain, point: str) -> None:
    chain.faults.fail_at(point)
    (instance_id,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", instance_id)
    step = point.split(".")[1]
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert instance.reason.message.startswith(f"Step {step} failed: Fault: told to fail at {point}")
    chain.assert_clean()
    assert_nothing_left(chain)
    entries = chain.read(lambda tx: timeline.of_instance(tx, instance_id))
    failed = [entry for entry in entries if entry.outcome == "failed"]
    assert [entry.name for entry in failed] == [step]
    assert failed[0].causes == (f"Fault: told to fail at {point}",)
    chain.faults.clear()
    (other,) = chain.run_instances()
    chain.wait_for("running", other)
    chain.assert_clean()


@pytest.mark.parametrize("step", [step.name for step in LAUNCH if step.undo])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_undo_that_fails_is_made_up_for(chain: Chain, step: str, moment: str) -> None:
    chain.faults.fail_at("step.start.after", nth=1)
    chain.faults.fail_at(f"undo.{step}.{moment}", nth=1)
    (instance_id,) = chain.run_instances()
    settled = (InstanceState.RUNNING, InstanceState.TERMINATED)
    wait_until(lambda: chain.get(instance_id).state in settled, lambda: f"{chain.get(instance_id)}")
    chain.assert_clean()
    instance = chain.get(instance_id)
    if instance.state is InstanceState.TERMINATED:
        assert instance.reason
        assert "told to fail" in instance.reason.message
        assert_nothing_left(chain)
    else:
        assert chain.machine.running() == {instance_id: instance.epoch}


@pytest.mark.parametrize("point", points(STOP))
def test_a_stop_goes_forward(chain: Chain, point: str) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.faults.fail_at(point, nth=1)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    assert chain.machine.running() == {}
    chain.assert_clean()
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    chain.assert_clean()


@pytest.mark.parametrize("point", points(REMOVAL))
def test_a_removal_goes_forward(chain: Chain, point: str) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.faults.fail_at(point, nth=1)
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    chain.assert_clean()
    assert_nothing_left(chain)


@pytest.mark.parametrize("point", points(LAUNCH))
def test_a_start_that_fails_keeps_the_disk(chain: Chain, point: str) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    disk = chain.directory(instance_id) / "disk-0.qcow2"
    inode = disk.stat().st_ino
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.faults.fail_at(point)
    chain.start_instances(instance_id)
    wait_until(
        lambda: (
            chain.get(instance_id).reason is not None and chain.get(instance_id).state == "stopped"
        ),
        lambda: f"stopped for a reason: {chain.get(instance_id)}",
    )
    assert disk.stat().st_ino == inode
    assert chain.quota_used() == {"instances": 1, "vcpus": 0, "memory_mib": 0}
    chain.assert_clean()
    chain.faults.clear()
    chain.start_instances(instance_id)
    (instance,) = chain.wait_for("running", instance_id)
    assert instance.reason is None
    assert disk.stat().st_ino == inode
    chain.assert_clean()


def twice(step: Step[Subject]) -> Step[Subject]:
    do, undo = step.do, step.undo

    def do_twice(subject: Subject) -> str | None:
        do(subject)
        return do(subject)

    def undo_twice(subject: Subject) -> None:
        assert undo is not None
        undo(subject)
        undo(subject)

    return Step(
        name=step.name, do=do_twice, undo=undo_twice if undo else None, no_undo=step.no_undo
    )


@pytest.fixture
def all_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do and undo every step twice."""
    for name in ("LAUNCH", "STOP", "REMOVAL"):
        steps = getattr(worker, name)
        monkeypatch.setattr(worker, name, tuple(twice(step) for step in steps))


@pytest.mark.usefixtures("all_twice")
def test_every_step_twice(make_chain: MakeChain) -> None:
    chain = make_chain()
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    definition = chain.machine.compute._instances[instance_id].definition
    assert len(definition.disks) == len(definition.taps) == 1
    chain.assert_clean()
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    chain.assert_clean()
    assert_nothing_left(chain)


@pytest.mark.usefixtures("all_twice")
@pytest.mark.parametrize("step", [step.name for step in LAUNCH])
def test_every_undo_twice(make_chain: MakeChain, step: str) -> None:
    chain = make_chain()
    chain.faults.fail_at(f"step.{step}.after")
    (instance_id,) = chain.run_instances()
    chain.wait_for("terminated", instance_id)
    chain.assert_clean()
    assert_nothing_left(chain)
