"""What becomes of members: they are removed, renew their papers, change their kind."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest

from appliance.cluster import certificates, peer_client
from appliance.cluster.membership import Membership, folder_of
from appliance.errors import Denied, Unavailable
from appliance.messages import GetMembers
from appliance.store import members, nodes
from tests.cluster.trust import (
    ControlNode,
    Machine,
)

REMOVED = pytest.mark.faults("membership: removed nodes", quick=True)


class TestRemoved:
    @REMOVED
    def test_t58_f24_its_certificate_stops_working_at_once(
        self, control: ControlNode, machine: Machine
    ) -> None:
        told = machine.join(control.token())
        control.tell()
        context = machine.membership.client_context()
        assert machine.ask("/settings", context=context) == 200
        control.change(lambda tx: members.expel(tx, told.node_id))
        assert machine.ask("/settings", context=context) == 403, "the store knows at once"
        control.change(members.changed)
        control.tell()
        assert machine.ask("/anything", context=context) == 403
        known = control.read(
            lambda tx: members.answer(tx, GetMembers(node_id="", known_revision=-1))
        )
        own = certificates.read_certificate(
            (folder_of(machine.state_dir) / "node.pem").read_bytes()
        )
        assert certificates.identity_of(own).serial in known.revoked

    @REMOVED
    def test_it_gets_no_new_certificate(self, control: ControlNode, machine: Machine) -> None:
        told = machine.join(control.token())
        membership = machine.membership
        control.change(lambda tx: members.expel(tx, told.node_id))
        control.clock.ahead_s = 200 * 86400
        with pytest.raises(Denied):
            machine.entitlement(membership).follow()

    @REMOVED
    def test_it_may_come_back_as_another_node(self, control: ControlNode, machine: Machine) -> None:
        first = machine.join(control.token())
        control.change(lambda tx: members.expel(tx, first.node_id))
        control.change(members.changed)
        membership = machine.membership
        control.tell(membership)
        second = machine.join(control.token())
        assert second.node_id != first.node_id
        assert control.names() == ["first", "second"]

    @REMOVED
    def test_it_may_come_back_although_nobody_told_it(
        self, control: ControlNode, machine: Machine
    ) -> None:
        """Its login was gone before it could hear that it was removed."""
        first = machine.join(control.token())
        control.change(lambda tx: members.expel(tx, first.node_id))
        control.change(members.changed)
        control.tell()
        second = machine.join(control.token())
        assert second.node_id != first.node_id
        assert control.names() == ["first", "second"]

    @REMOVED
    def test_both_certificates_of_one_that_renews(
        self, control: ControlNode, machine: Machine
    ) -> None:
        told = machine.join(control.token())
        control.tell()
        folder = folder_of(machine.state_dir)
        before = certificates.read_certificate((folder / "node.pem").read_bytes())
        with mock.patch("appliance.cluster.entitlement.Entitlement._settle"):
            control.change(
                lambda tx: nodes.join(
                    tx,
                    nodes.Node(
                        node_id=told.node_id, name="second", zone="z", roles=("compute", "network")
                    ),
                )
            )
            control.change(members.changed)
            membership = machine.membership
            control.tell(membership)
            assert machine.entitlement(membership).follow()
        after = certificates.read_certificate((folder / "node.pem").read_bytes())
        control.change(lambda tx: members.expel(tx, told.node_id))
        for one in (before, after):
            serial = certificates.serial_text(one.serial_number)
            assert control.read(partial(members.is_revoked, serial=serial))


class TestEntitlement:
    @pytest.fixture
    def joined(self, control: ControlNode, machine: Machine) -> Membership:
        machine.join(control.token())
        membership = machine.membership
        control.tell(membership)
        return membership

    def give_roles(
        self, control: ControlNode, machine: Machine, joined: Membership, *roles: str
    ) -> None:
        row = nodes.Node(node_id=machine.settings.node_id, name="second", zone="z", roles=roles)
        control.change(lambda tx: nodes.join(tx, row))
        control.change(members.changed)
        control.tell(joined)

    def test_a_hypervisor_is_told_no_secret(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        machine.entitlement(joined).follow()
        told = machine.settings
        assert told.store_url == ""
        assert not (machine.state_dir / "seal.json").exists()

    def test_a_new_role_that_reaches_the_store_makes_a_control_node(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        node_id = machine.settings.node_id
        follower = machine.entitlement(joined)
        follower.follow()
        self.give_roles(control, machine, joined, "compute", "datapath", "network")
        assert joined.settings_of(machine.config, joined.members.get(node_id)).node.roles == (
            "compute",
            "datapath",
        ), "not before it has what it needs"
        assert follower.follow()
        told = machine.settings
        assert told.is_control
        assert told.store_url == control.config.store.url.partition("?")[0]
        assert f"c-{node_id}:" in told.bus_url
        assert control.logins.passwords.keys() == {(node_id, True), (node_id, False)}
        own = (folder_of(machine.state_dir) / "node.pem").read_bytes()
        assert certificates.identity_of(certificates.read_certificate(own)).is_control
        assert (machine.state_dir / "seal.json").read_text() == (
            control.config.state_dir / "seal.json"
        ).read_text()
        control.tell(joined)
        assert (
            "network" in joined.settings_of(machine.config, joined.members.get(node_id)).node.roles
        )
        follower.follow()
        follower.follow()
        assert control.logins.passwords.keys() == {(node_id, True)}, "the old login is gone"
        assert not follower.follow(), "nothing more to do"

    def test_what_it_signs_then_counts(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        message = ("cast.compute.x", "Order", "m", b"{}", 1)
        signature = joined.signer.sign(*message)
        with pytest.raises(Denied):
            control.membership.signer.check(*message, signature)
        self.give_roles(control, machine, joined, "network")
        machine.entitlement(joined).follow()
        signed = joined.signer.sign(*message)
        checked = control.membership.signer.check(*message, signed)
        assert checked == machine.settings.node_id

    def test_and_back_again(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        node_id = machine.settings.node_id
        follower = machine.entitlement(joined)
        self.give_roles(control, machine, joined, "network")
        follower.follow()
        control.tell(joined)
        follower.follow()
        signed = joined.signer.sign("k", "Order", "m", b"", 1)
        self.give_roles(control, machine, joined, "compute")
        follower.follow()
        control.tell(joined)
        follower.follow()
        follower.follow()
        told = machine.settings
        assert (told.is_control, told.store_url) == (False, "")
        assert f"h-{node_id}:" in told.bus_url
        assert not (machine.state_dir / "seal.json").exists()
        assert control.logins.passwords.keys() == {(node_id, False)}
        control.tell(joined)
        with pytest.raises(Denied):
            control.membership.signer.check("k", "Order", "m", b"", 1, signed)

    def test_an_interrupted_change_of_kind_is_continued(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        """The answer with certificate and password is lost on the way."""
        node_id = machine.settings.node_id
        self.give_roles(control, machine, joined, "network")
        asked = peer_client.asked

        def lost(*arguments: object) -> object:
            asked(*arguments)  # type: ignore[arg-type]
            raise Unavailable("The line broke.")

        follower = machine.entitlement(joined)
        with mock.patch.object(peer_client, "asked", lost), pytest.raises(Unavailable):
            follower.follow()
        assert not machine.settings.is_control
        control.tell(joined)
        follower.follow()
        assert machine.settings.is_control
        assert control.logins.passwords[node_id, True] in machine.settings.bus_url

    def test_a_certificate_is_renewed_after_half_a_year(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        path = folder_of(machine.state_dir) / "node.pem"
        before = path.read_bytes()
        follower = machine.entitlement(joined)
        control.clock.ahead_s = 180 * 86400
        follower.follow()
        assert path.read_bytes() == before
        control.clock.ahead_s = 184 * 86400
        bus_url = machine.settings.bus_url
        follower.follow()
        assert path.read_bytes() != before
        assert machine.settings.bus_url == bus_url, "the login goes on"
        first = certificates.read_certificate(before)
        second = certificates.read_certificate(path.read_bytes())
        assert certificates.same_key(second.public_key(), first)  # type: ignore[arg-type]

    def test_no_control_node_answers(
        self, control: ControlNode, machine: Machine, joined: Membership
    ) -> None:
        self.give_roles(control, machine, joined, "network")
        control.server.close()
        before = machine.settings
        with pytest.raises(Unavailable):
            machine.entitlement(joined).follow()
        assert machine.settings == before
