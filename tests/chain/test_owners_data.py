"""What an owner put on a disk outlives every failure that is not a terminate; and who waits."""

from __future__ import annotations

import time
from typing import cast
from unittest.mock import patch

import pytest

from appliance.hooks import Compute
from appliance.messages import Message, Order
from appliance.model import Desired, InstanceState
from appliance.role import CastHandler
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until


def stopped_instance(chain: Chain) -> str:
    """Return an instance that has run and is stopped."""
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    return instance_id


def test_a_start_without_its_disk_does_not_make_a_fresh_one(chain: Chain) -> None:
    instance_id = stopped_instance(chain)
    disk = chain.directory(instance_id) / "disk-0.qcow2"
    away = disk.with_suffix(".away")
    disk.rename(away)

    chain.start_instances(instance_id)
    (refused,) = chain.wait_for("stopped", instance_id)
    assert refused.reason is not None
    assert "is not there" in refused.reason.message
    assert not disk.exists()

    away.rename(disk)
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    chain.assert_clean()


def test_a_start_whose_order_is_given_up_keeps_its_disk(make_chain: MakeChain) -> None:
    chain = make_chain(bus={"attempts": 1}, compute={"inventory_every_s": 60.0})
    instance_id = stopped_instance(chain)
    casts = cast(dict[type[Message], CastHandler], chain.node.roles["compute"].casts)
    with patch.dict(casts, {Order: _fail}):
        chain.start_instances(instance_id)
        wait_until(lambda: _is_stopped_with_reason(chain, instance_id), "the start is given up")
    assert (chain.directory(instance_id) / "disk-0.qcow2").exists()
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)


def _fail(*_: object) -> None:
    raise RuntimeError("a fault that is not expected")


def _is_stopped_with_reason(chain: Chain, instance_id: str) -> bool:
    instance = chain.get(instance_id)
    return (
        instance.state is InstanceState.STOPPED
        and instance.desired is Desired.STOPPED
        and instance.reason is not None
        and "given up" in instance.reason.message
    )


def test_what_somebody_else_starts_is_stopped_again(chain: Chain) -> None:
    instance_id = stopped_instance(chain)
    chain.machine.compute.compute_start(instance_id)
    wait_until(lambda: instance_id not in chain.machine.running(), "it is off again")
    chain.assert_clean()


def test_a_forced_stop_overtakes_a_polite_one(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(compute={"shutdown_s": 30.0})
    monkeypatch.setattr(Compute, "shut_down", lambda self, instance_id: None)
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopping", instance_id)
    began = time.monotonic()
    chain.stop_instances(instance_id, is_forced=True)
    chain.wait_for("stopped", instance_id)
    assert time.monotonic() - began < 15


def test_instances_that_ignore_acpi_hold_nobody_up(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(compute={"shutdown_s": 30.0, "parallel_launches": 2})
    monkeypatch.setattr(Compute, "shut_down", lambda self, instance_id: None)
    deaf = chain.run_instances(3)
    chain.wait_for("running", *deaf)
    chain.stop_instances(*deaf)
    chain.wait_for("stopping", *deaf)
    began = time.monotonic()
    (other,) = chain.run_instances()
    chain.wait_for("running", other)
    assert time.monotonic() - began < 15
    chain.stop_instances(*deaf, is_forced=True)
    chain.wait_for("stopped", *deaf)


def test_a_hung_launch_shows_no_progress(make_chain: MakeChain) -> None:
    chain = make_chain(controller={"progress_s": 0.3, "sweep_every_s": 0.1, "give_up_s": 2.0})
    chain.faults.at("step.fetch-images.before", lambda: time.sleep(4.0), nth=1)
    (instance_id,) = chain.run_instances()
    before = chain.get(instance_id).progress_at
    wait_until(lambda: chain.get(instance_id).desired is Desired.TERMINATED, "it is given up")
    assert chain.get(instance_id).progress_at == before or chain.get(instance_id).reason is not None
    (ended,) = chain.wait_for("terminated", instance_id)
    assert ended.reason is not None
    assert "no progress" in ended.reason.message


def test_a_disk_that_was_set_aside_goes_after_its_days(make_chain: MakeChain) -> None:
    chain = make_chain(compute={"attic_days": 1})
    attic = chain.config.state_dir / "attic"
    names = {days: _name_in_attic(f"i-{days}", days) for days in (0, 2)}
    for name in names.values():
        (attic / name).mkdir(parents=True)
    wait_until(lambda: not (attic / names[2]).exists(), "the old one to be deleted")
    assert (attic / names[0]).is_dir()


def test_what_was_set_aside_stays_where_no_days_are_set(make_chain: MakeChain) -> None:
    chain = make_chain(compute={"attic_days": 0})
    old = chain.config.state_dir / "attic" / _name_in_attic("i-1", 10_000)
    old.mkdir(parents=True)
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.restart()
    assert old.is_dir()


def _name_in_attic(instance_id: str, days: int) -> str:
    moment = time.localtime(time.time() - days * 86400)
    return f"{instance_id}.{time.strftime('%Y%m%dT%H%M%S', moment)}-000001"
