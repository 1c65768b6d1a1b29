"""Messages doubled, late, stale, poisoned or given up; wishes that change in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from sqlalchemy import insert, select

from appliance.compute.launch import LAUNCH
from appliance.compute.worker import Worker
from appliance.controller import reports
from appliance.errors import Unavailable
from appliance.hooks import Scheduler
from appliance.messages import Order, Place, Report
from appliance.store import Transaction, placements
from appliance.store import instances as instance_rows
from appliance.store.schema import instances, outbox
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until
from tests.store.conftest import claim_room

NOTHING_USED = {"instances": 0, "vcpus": 0, "memory_mib": 0}
POINTS = [f"step.{step.name}.{moment}" for step in LAUNCH for moment in ("before", "after")]


def only_id(chain: Chain) -> str:
    """Return the one instance that there is."""
    found: str = chain.read(lambda tx: tx.execute(select(instances.c.id)).scalar_one())
    return found


def assert_gone(chain: Chain) -> None:
    chain.assert_clean()
    assert chain.machine.compute.compute_list() == []
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().taps == ()
    assert list((chain.config.state_dir / "instances").iterdir()) == []
    assert chain.quota_used() == NOTHING_USED


@pytest.mark.faults("races: terminate in a launch", quick=True)
@pytest.mark.faults("terminate: in a launch, in memory", quick=True)
@pytest.mark.parametrize("point", ["bus.before.Place", "bus.after.Place", *POINTS])
def test_terminated_in_the_middle(chain: Chain, point: str) -> None:
    chain.faults.at(point, lambda: chain.terminate(only_id(chain)), nth=1)
    (instance_id,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.code == "Client.UserInitiatedShutdown"
    assert_gone(chain)


@pytest.mark.faults("terminate: in a launch, then killed, in memory", quick=True)
@pytest.mark.parametrize("step", [step.name for step in LAUNCH])
def test_terminated_in_the_middle_and_killed(chain: Chain, step: str) -> None:
    def end() -> None:
        chain.terminate(only_id(chain))
        chain.faults.kill()

    chain.faults.at(f"step.{step}.after", end, nth=1)
    (instance_id,) = chain.run_instances()
    chain.bury()
    chain.start()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.code == "Client.UserInitiatedShutdown"
    assert_gone(chain)


@pytest.mark.parametrize("point", POINTS)
def test_stopped_and_started_by_an_operator_in_the_middle(chain: Chain, point: str) -> None:
    is_there, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_there.set()
        may_go_on.wait(10)

    chain.faults.at(point, hold, nth=1)
    (instance_id,) = chain.run_instances()
    assert is_there.wait(10)
    stopping = threading.Thread(target=chain.stop)
    stopping.start()
    may_go_on.set()
    stopping.join(20)
    chain.faults.clear()
    chain.start()
    chain.wait_for("running", instance_id)
    assert list(chain.machine.running()) == [instance_id]
    chain.assert_clean()


@pytest.mark.faults("races: orders", quick=True)
def test_doubled_orders(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    for _ in range(3):
        chain.cast(chain.order(instance_id))
    assert chain.bus.wait_quiet(10)
    chain.assert_clean()
    assert chain.machine.running() == {instance_id: 1}
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    for _ in range(3):
        chain.cast(chain.order(instance_id, verb="stop", spec=None))
    chain.assert_clean()
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    assert_gone(chain)


@pytest.mark.faults("races: orders", quick=True)
def test_a_late_order_after_the_end(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    order = chain.order(instance_id)
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    chain.cast(order)
    assert chain.bus.wait_quiet(10)
    assert_gone(chain)


@pytest.mark.faults("races: orders", quick=True)
def test_an_order_of_an_older_epoch(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    old_run = chain.order(instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    old_stop = chain.order(instance_id, verb="stop")
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    for order in (old_stop, old_run, chain.order(instance_id, epoch=1, verb="remove")):
        chain.cast(order)
    assert chain.bus.wait_quiet(10)
    chain.assert_clean()
    assert chain.machine.running() == {instance_id: 2}
    assert chain.get(instance_id).state == "running"


@pytest.mark.faults("races: orders", quick=True)
def test_the_end_overtakes_the_order(chain: Chain) -> None:
    def be_late() -> None:
        chain.terminate(only_id(chain))
        raise Unavailable("The order takes a longer way.")

    chain.faults.at("bus.before.Order", be_late, nth=1)
    (instance_id,) = chain.run_instances()
    chain.wait_for("terminated", instance_id)
    assert chain.bus.wait_quiet(10)
    assert_gone(chain)
    assert "step.bind.before" not in chain.faults.passed


def place_anew(tx: Transaction, chain: Chain, instance_id: str) -> None:
    """Place an instance on its node again, with a fresh disk, as after an evacuation."""
    old = placements.active(tx, instance_id)
    instance = instance_rows.get(tx, instance_id)
    assert old
    assert instance
    placements.end(tx, old, "evacuated")
    assert claim_room(tx, instance_id, old.epoch + 1, old.node_id)
    instance_rows.placed(tx, [(instance_id, old.epoch + 1, old.node_id)])
    specs = instance_rows.specs(tx, [instance_id])
    order = Order(
        instance_id=instance_id,
        epoch=old.epoch + 1,
        revision=instance.revision,
        verb="run",
        spec=specs[instance_id],
    )
    tx.cast(f"compute.{old.node_id}", order)


@pytest.mark.parametrize("removal", ["", "step.forget.after", "step.remove-files.before"])
def test_an_older_copy_makes_room_and_its_disk_is_set_aside(chain: Chain, removal: str) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    disk = chain.directory(instance_id) / "disk-0.qcow2"
    inode = disk.stat().st_ino
    if removal:
        chain.faults.fail_at(removal, nth=1)
    chain.node.store.transaction(lambda tx: place_anew(tx, chain, instance_id))
    wait_until(lambda: chain.machine.running() == {instance_id: 2}, "the new copy runs")
    chain.assert_clean()
    (aside,) = (chain.config.state_dir / "attic").iterdir()
    assert (aside / "disk-0.qcow2").stat().st_ino == inode
    assert disk.stat().st_ino != inode


def test_a_copy_that_nobody_knows_is_set_aside(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    definition = chain.machine.compute._instances[instance_id].definition
    stranger = "i-0123456789abcdef0"
    folder = chain.config.state_dir / "instances" / stranger
    folder.mkdir()
    (folder / "disk-0.qcow2").write_bytes(b"somebody's thesis")
    chain.machine.compute.compute_define(replace(definition, instance_id=stranger))
    chain.machine.compute.compute_start(stranger)
    chain.assert_clean()
    assert list(chain.machine.running()) == [instance_id]
    (aside,) = (chain.config.state_dir / "attic").iterdir()
    assert (aside / "disk-0.qcow2").read_bytes() == b"somebody's thesis"


def failing_for(method: Callable[..., None], verb: str) -> Callable[..., None]:
    def handle(self: object, order: Order, *rest: object) -> None:
        if order.verb == verb:
            raise RuntimeError("a bug")
        method(self, order, *rest)

    return handle


@pytest.mark.faults("bus: poison", quick=True)
def test_an_order_that_is_given_up(make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "order", failing_for(Worker.order, "run"))
    chain = make_chain(bus={"attempts": 2}, compute={"inventory_every_s": 60.0})
    (instance_id,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert "RuntimeError: a bug" in instance.reason.message
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})
    assert chain.quota_used() == NOTHING_USED
    monkeypatch.undo()


@pytest.mark.faults("bus: poison", quick=True)
def test_a_placement_that_is_given_up(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(*arguments: object, **named: object) -> None:
        raise RuntimeError("a bug")

    chain = make_chain(bus={"attempts": 2})
    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "rank", rank)
        (instance_id,) = chain.run_instances()
        (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert "RuntimeError: a bug" in instance.reason.message
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})
    assert chain.quota_used() == NOTHING_USED
    (other,) = chain.run_instances()
    chain.wait_for("running", other)


@pytest.mark.faults("bus: poison", quick=True)
def test_reports_that_cannot_be_handled_for_a_while(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(bus={"attempts": 1})
    apply = reports._apply
    failures = iter(range(3))

    def fail(parts: object, tx: object, message: Report, *rest: object) -> None:
        if message.state != "pending" and next(failures, None) is not None:
            raise RuntimeError("a bug")
        apply(parts, tx, message, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reports, "_apply", fail)
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    assert next(failures, None) is None
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})


@pytest.mark.faults("bus: poison", quick=True)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Place", b"{"),
        ("Place", b'{"reservation_id": 7}'),
        ("Place", b"[" * 100_000),
        ("NoSuchMessage", b"{}"),
        ("Report", b"{}"),
    ],
)
def test_poison(chain: Chain, kind: str, body: bytes) -> None:
    row = {"id": "poison", "topic": "scheduler", "lane": "", "kind": kind, "body": body}
    chain.node.store.transaction(
        lambda tx: tx.execute(insert(outbox).values(**row, created_at=tx.now))
    )
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)

    def letters() -> list[str]:
        query = select(outbox.c.error).where(outbox.c.dead_at.is_not(None))
        return list(chain.read(lambda tx: tx.execute(query).scalars().all()))

    wait_until(lambda: len(letters()) == 1, lambda: f"one dead letter: {letters()}")
    chain.assert_clean(allowed={"I6.DEAD_LETTER"})


@pytest.mark.faults("races: orders", quick=True)
def test_placing_twice_places_once(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    place = Place(reservation_id="r-1", instance_ids=(instance_id,))
    for _ in range(3):
        chain.node.bus.cast("scheduler", place)
    assert chain.bus.wait_quiet(10)
    chain.assert_clean()
    assert chain.machine.running() == {instance_id: 1}
