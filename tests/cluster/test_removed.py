"""A node whose messages do not get through asks at the doors: is it a member, where is the bus?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance import seal
from appliance.bus import amqp
from appliance.cluster import changes, decided, member, settings
from appliance.cluster.inquiry import inquire
from appliance.cluster.membership import Membership, folder_of
from appliance.config import ComputeSettings, FirewallSettings, NetworkSettings
from appliance.errors import Denied, Unavailable
from appliance.node import Node
from appliance.store import members, node_changes
from tests.chain.harness import wait_until
from tests.cluster.trust import FIRST_ID, ControlNode, Machine

REMOVED = pytest.mark.faults("membership: removed nodes", quick=True)
ELSEWHERE = "amqps://192.0.2.7:5671/anynode"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlNode]:
    made = ControlNode(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine(control: ControlNode) -> Machine:
    """A member, of which all have heard."""
    made = Machine(control, "second")
    made.config = msgspec.structs.replace(
        made.config,
        network=NetworkSettings(type="fake", metadata=False),
        firewall=FirewallSettings(driver="fake"),
        compute=ComputeSettings(driver="fake", injection=("none",)),
    )
    made.join(control.token())
    control.tell(made.membership)
    return made


def remove(control: ControlNode, machine: Machine) -> None:
    node_id = machine.settings.node_id
    control.change(lambda tx: changes.remove(tx, node_id))


class TestRemoved:
    @REMOVED
    def test_a_door_says_so(self, control: ControlNode, machine: Machine) -> None:
        membership = machine.membership
        inquire(membership, control.clock)
        assert membership.removal is None
        remove(control, machine)
        inquire(membership, control.clock)
        removal = machine.membership.removal
        assert removal is not None
        assert (removal.told_by, abs(removal.learnt_at - control.clock.now()) < 5) == (
            "first",
            True,
        )

    @REMOVED
    def test_silence_is_no_proof(self, control: ControlNode, machine: Machine) -> None:
        remove(control, machine)
        control.server.close()
        with pytest.raises(Unavailable):
            inquire(machine.membership, control.clock)
        assert machine.membership.removal is None

    @REMOVED
    def test_the_word_of_a_hypervisor_is_no_proof(
        self, control: ControlNode, machine: Machine
    ) -> None:
        """It was a control node once, and this node's list is old."""
        membership, before = machine.membership, control.membership
        shown = Membership(folder_of(machine.state_dir))
        known = membership.members.current
        own = next(one for one in known.members if one.node_id == machine.settings.node_id)
        claimed = msgspec.structs.replace(
            own, is_control=True, roles=("controller",), address=f"127.0.0.1:{control.port}"
        )
        assert membership.members.take(
            msgspec.structs.replace(known, revision=known.revision + 1, members=(claimed,))
        )
        remove(control, machine)
        before.folder = shown.folder
        before._contexts.clear()
        with pytest.raises(Denied, match="no control node any more"):
            inquire(membership, control.clock)
        assert machine.membership.removal is None

    @REMOVED
    def test_a_list_that_has_not_heard_of_a_new_node_removes_nobody(
        self, control: ControlNode
    ) -> None:
        late = Machine(control, "third")
        late.join(control.token())
        assert control.membership.members.get(late.settings.node_id) is None
        inquire(late.membership, control.clock)
        assert late.membership.removal is None

    def test_who_shows_no_certificate_learns_nothing(
        self, control: ControlNode, machine: Machine
    ) -> None:
        import ssl

        context = ssl.create_default_context(cadata=control.authority)
        assert machine.ask("/membership", "POST", context=context) == 403

    @REMOVED
    def test_its_roles_end_and_it_retries_nothing(
        self,
        control: ControlNode,
        machine: Machine,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(amqp, "START_S", 0.1)
        monkeypatch.setattr(member, "INQUIRE_AFTER_S", 0.0)
        monkeypatch.setattr(member, "INQUIRE_EVERY_S", 0.1)
        monkeypatch.setattr(member, "_DEADLINE_S", 0.1)
        node = Node(settings.overlay(machine.config))
        try:
            node.start()
            assert "member" in node.roles
            remove(control, machine)
            with caplog.at_level(logging.ERROR):
                wait_until(lambda: not node.roles, "its roles end")
                node.follow(node.config)
            told = [one for one in caplog.records if "was removed from its cluster" in one.message]
            assert len(told) == 1
            link = node.bus._link  # type: ignore[attr-defined]
            wait_until(lambda: not link._thread.is_alive(), "it no longer asks for the broker")
        finally:
            node.stop()
        again = Node(settings.overlay(machine.config))
        again.start()
        assert (again.roles, again.bus._link._thread) == ({}, None)  # type: ignore[attr-defined]
        again.stop()
        came = machine.join(control.token())
        assert machine.membership.removal is None
        assert control.names() == ["first", "second"]
        assert came.node_id == machine.settings.node_id


class TestBroker:
    def test_another_broker_is_learnt_with_a_login(
        self, control: ControlNode, machine: Machine
    ) -> None:
        sealing = seal.load(seal.key_path(control.config.state_dir))

        def move(tx: object) -> None:
            what = decided.get(tx, sealing)  # type: ignore[arg-type]
            changed = msgspec.structs.replace(what, bus_urls=ELSEWHERE, bus_is_ours=False)
            decided.keep(tx, sealing, changed)  # type: ignore[arg-type]

        before = machine.settings
        inquire(machine.membership, control.clock)
        assert (machine.settings, control.logins.made) == (before, 1)
        control.change(move)
        inquire(machine.membership, control.clock)
        told = machine.settings
        password = control.logins.passwords[told.node_id, False]
        assert told.bus_url == f"amqps://h-{told.node_id}:{password}@192.0.2.7:5671/anynode"
        assert not told.bus_is_ours
        inquire(machine.membership, control.clock)
        assert (machine.settings, control.logins.made) == (told, 2)

    def test_the_members_of_today_come_along(self, control: ControlNode, machine: Machine) -> None:
        membership = machine.membership
        control.change(
            lambda tx: node_changes.set_roles(tx, machine.settings.node_id, ("compute",))
        )
        revision = control.change(members.changed)
        inquire(membership, control.clock)
        assert membership.members.current.revision == revision
        own = membership.members.get(machine.settings.node_id)
        assert own is not None
        assert own.roles == ("compute",)
        assert membership.members.get(FIRST_ID) is not None
