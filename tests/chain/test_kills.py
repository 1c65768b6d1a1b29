"""A node dies at every named point of an instance's life, is started again, and all goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from appliance.compute.launch import LAUNCH, REMOVAL, STOP
from appliance.messages import RebootWanted
from appliance.store.schema import instances, outbox
from tests.chain.harness import Chain, Killed, wait_until

pytestmark = pytest.mark.faults("kill: in memory", quick=True)

STEPS = tuple(dict.fromkeys(step.name for step in (*LAUNCH, *STOP, *REMOVAL)))
KINDS = ("Place", "Order", "Report", "ReportConfirmed", "Wanted")
COMMITS = range(1, 13)
JOURNAL_COMMITS = {"compute": range(1, 7), "datapath": range(1, 5)}

POINTS = (
    *(f"step.{name}.{moment}" for name in STEPS for moment in ("before", "after")),
    *(f"bus.{moment}.{kind}" for kind in KINDS for moment in ("before", "after")),
    *(f"report.{state}.before" for state in ("running", "stopped", "gone")),
)
COMMIT_POINTS = [f"store.{moment}-commit" for moment in ("before", "after")]
JOURNAL_POINTS = [
    f"journal.{name}.{moment}-commit" for name in JOURNAL_COMMITS for moment in ("before", "after")
]

LAST = f"step.{LAUNCH[-1].name}.after"
UNDO_POINTS = [
    f"undo.{step.name}.{moment}" for step in LAUNCH if step.undo for moment in ("before", "after")
]


class Life:
    """An instance's life: each wish is granted, however often the node dies meanwhile."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.deaths = 0

    def wish(self, work: Callable[[], object]) -> bool:
        """Do what a user does; ``False`` when the node died and nobody knows whether it counts."""
        try:
            work()
        except Killed:
            self.revive()
            return False
        return True

    def revive(self) -> None:
        """Start the dead node again."""
        self.chain.bury()
        self.deaths += 1
        self.chain.start()

    def reach(self, state: str) -> None:
        """Wait until the instance is in a state, with a new node when this one dies."""
        chain = self.chain
        wait_until(
            lambda: chain.faults.is_dead.is_set() or self.is_in(state),
            lambda: f"{state}: {self.ids()} {[chain.get(one) for one in self.ids()]}",
        )
        if chain.faults.is_dead.is_set():
            self.revive()
            wait_until(
                lambda: self.is_in(state),
                lambda: f"{state}: {[chain.get(one) for one in self.ids()]}",
            )

    def ids(self) -> list[str]:
        """Return all instances that were ever accepted."""
        return list(self.chain.read(lambda tx: tx.execute(select(instances.c.id)).scalars().all()))

    def is_in(self, state: str) -> bool:
        """Say whether there is one instance, and in that state."""
        return [self.chain.get(one).state.value for one in self.ids()] == [state]

    def live(self) -> None:
        """Launch, stop, start and terminate one instance."""
        chain = self.chain
        if not self.wish(chain.run_instances) and not self.ids():
            chain.run_instances()
        self.reach("running")
        (instance_id,) = self.ids()
        before = chain.addresses(instance_id)
        inode = (chain.directory(instance_id) / "disk-0.qcow2").stat().st_ino
        assert list(chain.machine.running()) == [instance_id]
        for wish, state in (
            (chain.stop_instances, "stopped"),
            (chain.start_instances, "running"),
        ):
            if not self.wish(lambda wish=wish: wish(instance_id)):  # type: ignore[misc]
                wish(instance_id)
            self.reach(state)
            assert list(chain.machine.running()) == ([instance_id] if state == "running" else [])
            assert chain.addresses(instance_id) == before
            assert (chain.directory(instance_id) / "disk-0.qcow2").stat().st_ino == inode
        if not self.wish(lambda: chain.terminate(instance_id)):
            chain.terminate(instance_id)
        self.reach("terminated")
        wait_until(lambda: not chain.directory(instance_id).exists(), "its files are gone")
        if chain.faults.is_dead.is_set():
            self.revive()
        assert_nothing_left(chain)


def assert_nothing_left(chain: Chain) -> None:
    """See that there is no instance, and nothing of one."""
    chain.assert_clean()
    assert chain.machine.compute.compute_list() == []
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().taps == ()
    assert list((chain.config.state_dir / "instances").iterdir()) == []
    assert chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}


def test_every_point_is_named_here(chain: Chain) -> None:
    life = Life(chain)
    life.live()
    passed = set(chain.faults.passed)
    assert passed == {*POINTS, *COMMIT_POINTS, *JOURNAL_POINTS}


@pytest.mark.parametrize("point", POINTS)
def test_killed_once(chain: Chain, point: str) -> None:
    life = Life(chain)
    chain.faults.kill_at(point)
    life.live()
    assert life.deaths == 1


@pytest.mark.parametrize("point", ["step.bind.after", "step.start.after", "bus.after.Order"])
def test_killed_at_the_second_time(chain: Chain, point: str) -> None:
    life = Life(chain)
    chain.faults.kill_at(point, nth=2)
    life.live()
    assert life.deaths == 1


@pytest.mark.parametrize("nth", COMMITS)
@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_killed_around_a_commit(chain: Chain, point: str, nth: int) -> None:
    life = Life(chain)
    chain.faults.kill_at(point, nth=nth)
    life.live()
    assert life.deaths == 1


@pytest.mark.parametrize(
    ("name", "nth"), [(name, nth) for name, upto in JOURNAL_COMMITS.items() for nth in upto]
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_a_commit_of_a_journal(
    chain: Chain, name: str, moment: str, nth: int
) -> None:
    life = Life(chain)
    chain.faults.kill_at(f"journal.{name}.{moment}-commit", nth=nth)
    life.live()
    assert life.deaths == 1


@pytest.mark.parametrize("point", UNDO_POINTS)
def test_killed_in_an_undo_and_in_the_next(chain: Chain, point: str) -> None:
    def fail(*, dies: bool) -> None:
        chain.faults.fail_at(LAST)
        if dies:
            chain.faults.kill_at(point)

    fail(dies=True)
    (instance_id,) = chain.run_instances()
    for dies in (True, False):
        chain.bury()
        fail(dies=dies)
        chain.start()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.message.startswith("Step start failed")
    assert_nothing_left(chain)


@pytest.mark.parametrize("step", [step.name for step in LAUNCH])
def test_a_launch_that_was_cut_off_and_fails_earlier_leaves_nothing(
    chain: Chain, step: str
) -> None:
    chain.faults.kill_at(f"step.{step}.after")
    (instance_id,) = chain.run_instances()
    chain.bury()
    chain.faults.fail_at("step.bind.before")
    chain.start()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.message.startswith("Step bind failed")
    assert_nothing_left(chain)


def test_a_start_that_a_crash_left_running_fails_as_any_other(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.faults.fail_at(LAST)
    chain.faults.kill_at("undo.start.before")
    chain.start_instances(instance_id)
    chain.bury()
    assert list(chain.machine.running()) == [instance_id]
    chain.faults.fail_at(LAST)
    chain.start()
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert instance.reason.message.startswith("Step start failed")
    assert chain.machine.running() == {}
    chain.assert_clean()


def test_a_reboot_that_was_cut_off_is_carried_out(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)

    def die_when_its_order_is_taken() -> None:
        nothing = select(outbox.c.id)
        wait_until(lambda: not chain.read(lambda tx: tx.execute(nothing).all()), "it is taken")
        chain.faults.kill()

    chain.faults.at("reboot.before", die_when_its_order_is_taken, nth=1)
    chain.node.bus.cast("controller", RebootWanted(instance_id=instance_id))
    chain.bury()
    chain.start()

    def printed() -> bytes:
        return bytes(chain.machine.compute.compute_console(instance_id, "", 1000).text)

    wait_until(lambda: b"rebooting" in printed(), "it reboots")
    chain.assert_clean()
