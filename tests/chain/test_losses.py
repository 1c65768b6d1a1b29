"""Power cuts and lost journals: what ran, runs again or still; what was owned is owned."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chain.harness import Chain, wait_until

pytestmark = pytest.mark.faults("losses: power and journals, in memory", quick=True)

JOURNALS = ("compute", "datapath")


def lose(chain: Chain, *names: str) -> None:
    """Lose journals while the node is down."""
    for name in names:
        for path in chain.config.state_dir.glob(f"{name}.sqlite*"):
            path.unlink()


def cut_power(chain: Chain) -> None:
    """Cut the machine's power: nothing runs, and what does not outlive a reboot is gone."""
    chain.kill()
    chain.machine.cut_power()
    shutil.rmtree(chain.config.run_dir)


def test_power_cut(chain: Chain) -> None:
    running, stopped, gone = chain.run_instances(3)
    chain.wait_for("running", running, stopped, gone)
    chain.stop_instances(stopped)
    chain.terminate(gone)
    chain.wait_for("stopped", stopped)
    chain.wait_for("terminated", gone)
    before = {one: chain.addresses(one) for one in (running, stopped)}
    inode = (chain.directory(running) / "disk-0.qcow2").stat().st_ino
    cut_power(chain)
    chain.start()
    wait_until(lambda: list(chain.machine.running()) == [running], "what ran runs again")
    chain.wait_for("running", running)
    assert chain.get(stopped).state == "stopped"
    assert {one: chain.addresses(one) for one in (running, stopped)} == before
    assert (chain.directory(running) / "disk-0.qcow2").stat().st_ino == inode
    chain.assert_clean()
    chain.start_instances(stopped)
    chain.wait_for("running", stopped)
    chain.terminate(running, stopped)
    chain.wait_for("terminated", running, stopped)
    chain.assert_clean()


def test_power_cut_while_a_stop_is_on_its_way(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.faults.kill_at("bus.before.Wanted")
    chain.stop_instances(instance_id)
    wait_until(chain.faults.is_dead.is_set, "it dies")
    cut_power(chain)
    chain.start()
    chain.wait_for("stopped", instance_id)
    assert chain.machine.running() == {}
    chain.assert_clean()


@pytest.mark.parametrize("lost", [("compute",), ("datapath",), JOURNALS], ids=" ".join)
def test_power_cut_and_lost_journals(chain: Chain, lost: tuple[str, ...]) -> None:
    running, stopped = chain.run_instances(2)
    chain.wait_for("running", running, stopped)
    chain.stop_instances(stopped)
    chain.wait_for("stopped", stopped)
    before = chain.addresses(running)
    cut_power(chain)
    lose(chain, *lost)
    chain.start()
    wait_until(lambda: list(chain.machine.running()) == [running], "what ran runs again")
    chain.wait_for("running", running)
    assert chain.addresses(running) == before
    assert chain.get(stopped).state == "stopped"
    chain.assert_clean()


@pytest.mark.parametrize("lost", [("compute",), ("datapath",), JOURNALS], ids=" ".join)
def test_lost_journals(chain: Chain, lost: tuple[str, ...]) -> None:
    running, stopped = chain.run_instances(2)
    chain.wait_for("running", running, stopped)
    chain.stop_instances(stopped)
    chain.wait_for("stopped", stopped)
    printed = chain.machine.compute.compute_console(running, "", 1000)
    disks = {one: chain.directory(one) / "disk-0.qcow2" for one in (running, stopped)}
    inodes = {one: path.stat().st_ino for one, path in disks.items()}
    chain.kill()
    lose(chain, *lost)
    chain.start()
    chain.assert_clean()
    assert chain.machine.running() == {running: 1}
    assert chain.machine.compute.compute_console(running, "", 1000) == printed, "it was not touched"
    assert chain.get(stopped).state == "stopped"

    chain.start_instances(stopped)
    chain.stop_instances(running)
    chain.wait_for("running", stopped)
    chain.wait_for("stopped", running)
    assert {one: path.stat().st_ino for one, path in disks.items()} == inodes
    chain.assert_clean()
    chain.terminate(running, stopped)
    chain.wait_for("terminated", running, stopped)
    chain.assert_clean()
    assert chain.machine.compute.compute_list() == []
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().taps == ()
    assert not any(path.exists() for path in disks.values())


@pytest.mark.parametrize(
    "point", ["step.bind.after", "step.create-disks.after", "step.start.after"]
)
def test_a_journal_lost_in_the_middle_of_a_launch(chain: Chain, point: str) -> None:
    chain.faults.kill_at(point)
    (instance_id,) = chain.run_instances()
    wait_until(chain.faults.is_dead.is_set, "it dies")
    chain.bury()
    lose(chain, *JOURNALS)
    chain.start()
    chain.wait_for("running", instance_id)
    assert chain.machine.running() == {instance_id: 1}
    chain.assert_clean()


def test_a_restart_does_not_touch_what_runs(chain: Chain) -> None:
    ids = chain.run_instances(2)
    chain.wait_for("running", *ids)
    before = [chain.machine.compute.compute_console(one, "", 1000) for one in ids]
    for _ in range(3):
        chain.kill()
        chain.start()
        chain.restart()
    chain.assert_clean()
    assert chain.machine.running() == dict.fromkeys(ids, 1)
    assert [chain.machine.compute.compute_console(one, "", 1000) for one in ids] == before


def test_it_went_off_while_the_node_was_down(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.kill()
    chain.machine.compute.compute_power_off(instance_id)
    chain.machine.compute.compute_events(0.0)
    chain.start()
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    chain.assert_clean()


def test_a_full_disk_fails_a_launch_with_its_reason(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.compute import launch
    from appliance.errors import CommandFailed

    def fail(*arguments: object) -> int:
        raise CommandFailed("qemu-img: No space left on device")

    monkeypatch.setattr(launch, "create_overlay", fail)
    (instance_id,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert "No space left on device" in instance.reason.message
    chain.assert_clean()
