"""An instance's whole life on a node in memory."""

from __future__ import annotations

from appliance.messages import RebootWanted
from appliance.store import timeline
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until

NOTHING_USED = {"instances": 0, "vcpus": 0, "memory_mib": 0}


def test_launch(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    (instance,) = chain.wait_for("running", instance_id)
    assert chain.machine.running() == {instance_id: 1}
    assert instance.launched_at
    assert chain.addresses(instance_id) == ("10.64.0.4",)
    assert chain.quota_used() == {"instances": 1, "vcpus": 1, "memory_mib": 512}
    entries = chain.read(lambda tx: timeline.of_instance(tx, instance_id))
    assert [entry.name for entry in entries if entry.role != "network"] == [
        "accept",
        "place",
        *("bind", "fetch-images", "attach-ports", "apply-firewall", "create-disks"),
        *("inject", "define", "start"),
    ]
    assert {entry.outcome for entry in entries} == {"ok"}
    chain.assert_clean()


def test_stop_and_start_keep_disk_and_addresses(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    before = chain.addresses(instance_id)
    disk = chain.directory(instance_id) / "disk-0.qcow2"
    inode = disk.stat().st_ino

    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    assert chain.machine.running() == {}
    assert chain.machine.network.network_list().ports == ()
    assert chain.quota_used() == {"instances": 1, "vcpus": 0, "memory_mib": 0}
    chain.assert_clean()

    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    assert chain.machine.running() == {instance_id: 2}
    assert chain.addresses(instance_id) == before
    assert disk.stat().st_ino == inode
    assert chain.quota_used() == {"instances": 1, "vcpus": 1, "memory_mib": 512}
    chain.assert_clean()


def test_terminate(chain: Chain) -> None:
    ids = chain.run_instances(3)
    chain.wait_for("running", *ids)
    chain.terminate(*ids)
    for instance in chain.wait_for("terminated", *ids):
        assert instance.reason
        assert instance.reason.code == "Client.UserInitiatedShutdown"
    assert chain.machine.compute.compute_list() == []
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().taps == ()
    assert list((chain.config.state_dir / "instances").iterdir()) == []
    assert chain.quota_used() == NOTHING_USED
    chain.assert_clean()


def test_terminate_stopped(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)
    assert chain.quota_used() == NOTHING_USED
    chain.assert_clean()


def test_reboot(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.node.bus.cast("controller", RebootWanted(instance_id=instance_id))

    def printed() -> bytes:
        return chain.machine.compute.compute_console(instance_id, "", 1000).text

    wait_until(lambda: b"rebooting" in printed(), "it reboots")
    chain.assert_clean()


def test_many_at_once(chain: Chain) -> None:
    ids = chain.run_instances(12)
    chain.wait_for("running", *ids)
    owned = {chain.addresses(instance_id) for instance_id in ids}
    assert len(owned) == 12
    assert chain.quota_used()["instances"] == 12
    chain.assert_clean()


def test_no_room(make_chain: MakeChain) -> None:
    chain = make_chain(capacity={"memory_mib": 2048}, compute={"reserved_memory_mib": 0})
    ids = chain.run_instances(4)
    chain.wait_for("running", *ids)
    (last,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", last)
    assert instance.reason
    assert instance.reason.code == "Server.InsufficientInstanceCapacity"
    assert instance.reason.message == (
        "None of 1 nodes can hold it: capacity: 1 node has too little free memory."
    )
    assert chain.quota_used()["instances"] == 4
    chain.assert_clean()
    chain.terminate(ids[0])
    chain.wait_for("terminated", ids[0])
    (again,) = chain.run_instances()
    chain.wait_for("running", again)
    chain.assert_clean()


def test_all_or_none(make_chain: MakeChain) -> None:
    chain = make_chain(capacity={"memory_mib": 2048}, compute={"reserved_memory_mib": 0})
    ids = chain.run_instances(6, min_count=5)
    for instance in chain.wait_for("terminated", *ids):
        assert instance.reason
        assert instance.reason.code == "Server.InsufficientInstanceCapacity"
    assert chain.machine.compute.compute_list() == []
    assert chain.quota_used() == NOTHING_USED
    chain.assert_clean()
    ids = chain.run_instances(6, min_count=3)

    def states() -> list[str]:
        return sorted(chain.get(instance_id).state.value for instance_id in ids)

    wait_until(lambda: states() == ["running"] * 4 + ["terminated"] * 2, "four fit")
    assert len(chain.machine.running()) == 4
    assert chain.quota_used()["instances"] == 4
    chain.assert_clean()


def test_addresses_used_up(make_chain: MakeChain) -> None:
    chain = make_chain(network={"cidr": "10.64.0.0/29"})
    ids = chain.run_instances(3)  # 8 addresses, of which five are reserved
    chain.wait_for("running", *ids)
    (last,) = chain.run_instances()
    (instance,) = chain.wait_for("terminated", last)
    assert instance.reason
    assert instance.reason.code == "Server.InsufficientFreeAddressesInSubnet"
    assert "has no free address" in instance.reason.message
    assert chain.quota_used()["instances"] == 3
    chain.assert_clean()
    freed = chain.addresses(ids[1])
    chain.terminate(ids[1])
    chain.wait_for("terminated", ids[1])
    (again,) = chain.run_instances()
    chain.wait_for("running", again)
    assert chain.addresses(again) == freed
    chain.assert_clean()


def test_instance_crashes(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    before = chain.addresses(instance_id)
    chain.machine.compute.crash(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert "it crashed" in instance.reason.message
    chain.assert_clean()
    chain.start_instances(instance_id)
    (instance,) = chain.wait_for("running", instance_id)
    assert instance.reason is None
    assert chain.addresses(instance_id) == before
    chain.assert_clean()


def test_instance_shuts_itself_down(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.machine.compute.compute_shut_down(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert instance.reason.code == "Client.InstanceInitiatedShutdown"
    assert chain.quota_used() == {"instances": 1, "vcpus": 0, "memory_mib": 0}
    chain.assert_clean()
