"""Taking a node off its machine leaves nothing of ours, and all that is others'."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Conflict, Unavailable
from appliance.hookspecs import hookimpl
from appliance.teardown import tear_down
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain


def assert_gone(chain: Chain) -> None:
    assert chain.machine.compute.compute_list() == []
    state = chain.machine.network.network_list()
    assert (state.ports, state.network_ids) == ((), ())
    assert not chain.machine.firewall.firewall_state().is_guarded
    assert not chain.config.state_dir.exists()
    assert not chain.config.run_dir.exists()


def test_all_goes_and_is_said(chain: Chain) -> None:
    ids = chain.run_instances(2)
    chain.wait_for("running", *ids)
    chain.stop()
    said: list[str] = []
    removed = tear_down(chain.config, said.append)
    assert_gone(chain)
    assert [f"removed {one}" for one in removed] == said
    assert {f"instance {instance_id}" for instance_id in ids} < set(removed)
    assert str(chain.config.state_dir) in removed
    assert tear_down(chain.config) == ()


def test_not_under_a_node_that_runs(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    with pytest.raises(Conflict, match="still runs"):
        tear_down(chain.config)
    assert chain.machine.running()
    chain.assert_clean()


def test_half_a_state_is_enough(chain: Chain) -> None:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop()
    (chain.config.state_dir / "datapath.sqlite").unlink()
    (chain.config.state_dir / "store.sqlite").unlink()
    (chain.config.run_dir / "boot_id").unlink()
    tear_down(chain.config)
    assert_gone(chain)


def test_a_node_that_never_started(make_chain: MakeChain) -> None:
    chain = make_chain()
    chain.stop()
    tear_down(chain.config)
    assert_gone(chain)


def test_what_fails_is_named_and_the_rest_goes_on(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = chain.run_instances(2)
    chain.wait_for("running", *ids)
    chain.stop()
    remove = type(chain.machine.compute).compute_remove

    @hookimpl
    def refuse(self: object, instance_id: str) -> None:
        if instance_id == ids[0]:
            raise Unavailable("The hypervisor does not answer.")
        remove(chain.machine.compute, instance_id)

    with monkeypatch.context() as patched:
        patched.setattr(type(chain.machine.compute), "compute_remove", refuse)
        with pytest.raises(Conflict) as caught:
            tear_down(chain.config)
    assert f"instance {ids[0]}: The hypervisor does not answer." in caught.value.message
    assert "virsh" in caught.value.message
    assert [fact.instance_id for fact in chain.machine.compute.compute_list()] == [ids[0]]
    assert chain.machine.network.network_list().ports == ()
    assert chain.machine.firewall.firewall_state().is_guarded, "rules stay as long as it may run"
    assert (chain.config.state_dir / "node_id").exists()
    tear_down(chain.config)
    assert_gone(chain)


def test_what_is_not_ours_stays(chain: Chain, tmp_path: Path) -> None:
    chain.stop()
    foreign = chain.config.state_dir / "thesis.tex"
    foreign.write_text("years of work")
    with pytest.raises(Conflict, match=r"thesis\.tex"):
        tear_down(chain.config)
    assert foreign.read_text() == "years of work"
    assert (chain.config.state_dir / "node_id").exists()
    foreign.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (chain.config.state_dir / "attic").symlink_to(elsewhere)
    tear_down(chain.config)
    assert (elsewhere / "kept").exists()
    assert_gone(chain)


def test_a_folder_without_our_mark_is_left_alone(chain: Chain) -> None:
    chain.stop()
    for folder, mark in ((chain.config.state_dir, "node_id"), (chain.config.run_dir, "node.lock")):
        (folder / mark).unlink()
    assert tear_down(chain.config) == ()
    assert (chain.config.state_dir / "store.sqlite").exists()
