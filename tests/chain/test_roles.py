"""A node's roles come and go while it runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.config import Config
from appliance.errors import ConfigError, Unavailable
from appliance.hookspecs import hookimpl
from appliance.messages import Done, KeepPorts
from appliance.node import Node, NodeParts
from appliance.role import Periodic, Role
from tests.chain.harness import Chain, wait_until


def test_a_role_goes_and_comes_back_while_instances_run(chain: Chain) -> None:
    first = chain.run_instances()
    chain.wait_for("running", *first)
    for name in ("compute", "scheduler", "controller", "network", "datapath"):
        chain.node.stop_role(name)
        assert name not in chain.node.roles
        chain.node.start_role(name)
    assert {*first} == {*chain.machine.running()}
    chain.wait_for("running", *chain.run_instances(2))
    chain.terminate(*first)
    chain.wait_for("terminated", *first)
    chain.assert_clean()


def test_what_waits_for_a_role_is_done_when_it_comes(chain: Chain) -> None:
    chain.node.stop_role("scheduler")
    ids = chain.run_instances()
    assert chain.get(ids[0]).state.value == "pending"
    chain.node.start_role("scheduler")
    chain.wait_for("running", *ids)


class Plugin:
    """A role that counts what happens to it."""

    def __init__(self) -> None:
        self.rounds = 0
        self.stops = 0
        self.is_broken = False

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        return Role(
            name="counting",
            topic="counting",
            calls={KeepPorts: lambda question: Done(detail="here")},
            periodic=(Periodic(name="count", every_s=0.01, run=self.count),),
            start=self.start,
            stop=self.stop,
        )

    def count(self) -> None:
        self.rounds += 1

    def start(self) -> None:
        if self.is_broken:
            raise ConfigError("It is broken.")

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def counting(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> tuple[Plugin, Node]:
    plugin = Plugin()
    monkeypatch.setattr(type(chain.node.plugins), "create", lambda self, group, name: plugin)
    return plugin, chain.node


def test_rounds_end_with_their_role(counting: tuple[Plugin, Node]) -> None:
    plugin, node = counting
    node.start_role("counting")
    node.start_role("counting")
    wait_until(lambda: plugin.rounds > 2, "rounds are done")
    assert node.bus.call("counting", KeepPorts(instance_ids=()), Done, 5).detail == "here"
    node.stop_role("counting")
    node.stop_role("counting")
    assert plugin.stops == 1
    seen = plugin.rounds
    with pytest.raises(Unavailable):
        node.bus.call("counting", KeepPorts(instance_ids=()), Done, 0.2)
    assert plugin.rounds <= seen + 1


def test_a_role_that_cannot_start_leaves_nothing(counting: tuple[Plugin, Node]) -> None:
    plugin, node = counting
    plugin.is_broken = True
    with pytest.raises(ConfigError, match="broken"):
        node.start_role("counting")
    assert plugin.stops == 1
    assert "counting" not in node.roles
    plugin.is_broken = False
    node.start_role("counting")
    assert "counting" in node.roles


def test_a_node_without_a_store_role_opens_no_store(tmp_path: Path) -> None:
    config = msgspec.convert(
        {
            "node": {
                "roles": ["compute", "datapath"],
                "state_dir": str(tmp_path / "state"),
                "run_dir": str(tmp_path / "run"),
            }
        },
        Config,
    )
    with pytest.raises(ConfigError, match="local:"):
        Node(config)
    assert not (tmp_path / "state" / "store.sqlite").exists()
