"""One node of a cluster: roles that cannot start, and settings that change while it runs."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from appliance.cluster.settings import folder_of
from appliance.config import Config
from appliance.store import Transaction, members, node_changes
from tests.chain.conftest import MakeChain, make_chain, quiet_deaths  # noqa: F401
from tests.chain.harness import Chain, wait_until
from tests.proxy.certificates import TestAuthority
from tests.services.postgresql import free_port


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:  # noqa: F811
    """A node that was a lone one, and is the only one of a cluster."""
    made = make_chain(
        cluster={"address": "127.0.0.1", "port": free_port()}, api={"port": free_port()}
    )
    node_id = made.node.node_id
    made.stop()
    folder = made.config.state_dir.parent / "authority"
    folder.mkdir()
    TestAuthority(folder).write_node(folder_of(made.config.state_dir), node_id)
    return made


def with_scheduler(config: Config, driver: str) -> Config:
    changed = msgspec.structs.replace(config.scheduler, driver=driver)
    return msgspec.structs.replace(config, scheduler=changed)


def test_a_role_that_cannot_start_keeps_no_other_from_it(chain: Chain) -> None:
    well = chain.config
    chain.config = with_scheduler(well, "none-such")
    chain.start()
    node = chain.node
    assert {"member", "controller", "network", "compute", "proxy"} <= {*node.roles}
    assert "scheduler" not in node.roles
    assert "none-such" in node.vital().problems["scheduler"]
    wait_until(lambda: bool(chain.read(members.revision)), "the controller hears the node")
    (instance_id,) = chain.run_instances()

    node.follow(well)
    assert node.vital().problems == {}
    chain.wait_for("running", instance_id)
    chain.config = well


def test_roles_come_and_go_as_the_store_says(chain: Chain) -> None:
    chain.start()
    node = chain.node
    ids = chain.run_instances()
    chain.wait_for("running", *ids)

    def want(*roles: str) -> None:
        def write(tx: Transaction) -> None:
            node_changes.set_roles(tx, node.node_id, roles)
            members.changed(tx)

        node.store.transaction(write)

    usual = chain.config.node.roles
    want(*(role for role in usual if role != "scheduler"))
    wait_until(lambda: "scheduler" not in node.roles, "it gives the role up")
    want(*usual)
    wait_until(lambda: "scheduler" in node.roles, "it takes the role on again")
    assert {*ids} == {*chain.machine.running()}
    chain.wait_for("running", *chain.run_instances())


def test_stopped_while_it_begins_anew_it_has_no_roles(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.start()
    node = chain.node
    is_beginning, may_go_on = threading.Event(), threading.Event()
    connect = node._connect

    def connect_late(config: Config) -> Any:
        made = connect(config)
        is_beginning.set()
        assert may_go_on.wait(10)
        return made

    monkeypatch.setattr(node, "_connect", connect_late)
    follower = threading.Thread(target=node.follow, args=[with_scheduler(chain.config, "chance")])
    follower.start()
    assert is_beginning.wait(10)
    stopper = threading.Thread(target=node.stop, args=[20.0])
    stopper.start()
    wait_until(lambda: node._is_stopped, "it shall stop")
    may_go_on.set()
    for thread in (follower, stopper):
        thread.join(30)
        assert not thread.is_alive()
    assert node.roles == {}
