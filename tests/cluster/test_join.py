"""Machines join by a token, over real TLS: what they become, and what a broken join leaves."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import msgspec
import pytest

from appliance.cluster import certificates, peer_client, settings, tokens
from appliance.cluster.join import BACKUP
from appliance.cluster.membership import folder_of
from appliance.cluster.peer_messages import JoinAnswer
from appliance.errors import Conflict, Denied, InputError, Unavailable
from appliance.store import Store, audit, migrations, nodes
from tests.cluster.trust import (
    ControlNode,
    Machine,
    nothing_is_left,
)

BROKEN_OFF = pytest.mark.faults("membership: joins broken off", quick=True)


class TestJoin:
    def test_a_machine_becomes_a_member(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        told = machine.join(token)
        assert control.names() == ["first", "second"]
        assert control.state_of(token) == "used"
        assert told.roles == ("datapath", "compute")
        assert (told.is_control, told.store_url) == (False, "")
        password = control.logins.passwords[told.node_id, False]
        assert told.bus_url == f"amqps://h-{told.node_id}:{password}@192.0.2.1:5671/anynode"
        config = settings.overlay(machine.config)
        assert config.node.roles == told.roles
        assert (config.store.url, config.cluster.address) == ("", "127.0.0.1")
        assert (machine.state_dir / "node_id").read_text().strip() == told.node_id
        assert machine.ask("/settings") == 403, "the control node has not heard of it yet"
        control.tell()
        assert machine.ask("/settings") == 200

    def test_its_folder_is_for_its_owner_alone(
        self, control: ControlNode, machine: Machine
    ) -> None:
        machine.join(control.token())
        folder = folder_of(machine.state_dir)
        assert folder.stat().st_mode & 0o777 == 0o700
        for name in ("node.key", "settings.json"):
            assert (folder / name).stat().st_mode & 0o777 == 0o600

    def test_its_key_never_leaves_it(self, control: ControlNode, machine: Machine) -> None:
        machine.join(control.token())
        key = (folder_of(machine.state_dir) / "node.key").read_bytes().splitlines()[1]
        control.store.close()
        for path in control.folder.glob("cluster.sqlite*"):
            assert key not in path.read_bytes()

    def test_what_it_offers_is_what_is_approved(
        self, control: ControlNode, machine: Machine
    ) -> None:
        machine.join(control.token())
        found = {one.name: one.approved for one in control.read(nodes.status)}
        assert found["second"] == (8, 2048, 40)

    def test_its_zone_gets_a_network(self, control: ControlNode, machine: Machine) -> None:
        from appliance.store import networks

        machine.join(control.token(), zone="far-away")
        assert control.read(lambda tx: networks.default_in_zone(tx, "far-away"))

    def test_it_is_written_down_who_joined(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        found = control.read(lambda tx: audit.find(tx, action="JoinNode", limit=10))
        assert [one.actor for one in found] == ["node second"]
        assert token.token_id in found[0].subject
        assert token.secret not in found[0].subject

    def test_again_on_a_member_does_nothing(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        control.tell()
        assert not machine.joining(token).check()
        assert not machine.joining(control.token()).check()

    def test_a_member_joins_no_other_cluster(
        self, control: ControlNode, machine: Machine, tmp_path: Path
    ) -> None:
        machine.join(control.token())
        (tmp_path / "other").mkdir()
        other = ControlNode(tmp_path / "other")
        try:
            with pytest.raises(Conflict, match="another cluster"):
                machine.joining(other.token()).check()
        finally:
            other.close()

    @pytest.mark.parametrize("wish", ["name", "address"])
    def test_what_is_anothers_is_refused(
        self, control: ControlNode, machine: Machine, wish: str
    ) -> None:
        token = control.token()
        if wish == "address":
            machine.config = msgspec.structs.replace(
                machine.config,
                cluster=msgspec.structs.replace(machine.config.cluster, port=control.port),
            )
        with pytest.raises(Conflict, match="Another node of the cluster has the"):
            machine.join(token, **({"name": "first"} if wish == "name" else {}))
        assert control.state_of(token) == "open"
        assert control.names() == ["first"]
        assert nothing_is_left(machine)

    @pytest.mark.parametrize(
        "wishes",
        [{"name": "a b"}, {"name": "x" * 64}, {"zone": "a/b"}, {"address": "0.0.0.0"}],
    )
    def test_what_cannot_be_is_refused(
        self, control: ControlNode, machine: Machine, wishes: dict[str, str]
    ) -> None:
        token = control.token()
        with pytest.raises(InputError):
            machine.join(token, **wishes)
        assert control.state_of(token) == "open"
        assert nothing_is_left(machine)

    def test_a_node_with_instances_of_its_own_is_refused(
        self, control: ControlNode, machine: Machine
    ) -> None:
        machine.state_dir.mkdir(parents=True)
        with mock.patch("appliance.store.overview.list_instances") as found:
            found.return_value = [mock.Mock(instance_id="i-1")]
            store = Store(machine.config.store_url, control.world)
            migrations.upgrade(store)
            store.close()
            with pytest.raises(Conflict, match="i-1"):
                machine.joining(control.token()).check()

    def test_a_lone_nodes_store_is_kept(self, control: ControlNode, machine: Machine) -> None:
        machine.state_dir.mkdir(parents=True)
        store = Store(machine.config.store_url, control.world)
        migrations.upgrade(store)
        store.close()
        machine.join(control.token())
        assert (machine.state_dir / f"store.sqlite{BACKUP}").exists()
        assert not (machine.state_dir / "store.sqlite").exists()

    def test_a_copy_of_a_machine_is_another_node(
        self, control: ControlNode, machine: Machine
    ) -> None:
        first = machine.join(control.token())
        copy = Machine(control, "third")
        copy.state_dir.mkdir(parents=True)
        (copy.state_dir / "node_id").write_text(f"{first.node_id}\n")
        second = copy.join(control.token())
        assert second.node_id != first.node_id
        assert (copy.state_dir / "node_id").read_text().strip() == second.node_id
        assert control.names() == ["first", "second", "third"]


class TestBrokenOff:
    @BROKEN_OFF
    def test_the_broker_is_away(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        control.logins.is_away = True
        with pytest.raises(Unavailable, match="broker is away"):
            machine.join(token)
        assert control.names() == ["first"]
        assert control.state_of(token) == "open"
        control.logins.is_away = False
        machine.join(token)
        assert control.names() == ["first", "second"]

    @BROKEN_OFF
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
    def test_the_answer_is_lost(
        self, control: ControlNode, machine: Machine, kind: type[BaseException]
    ) -> None:
        """The cluster has said yes; only this key may ask again, and gets the same node."""
        token = control.token()

        def lost(*arguments: object) -> object:
            asked(*arguments)  # type: ignore[arg-type]
            raise kind if kind is KeyboardInterrupt else Unavailable("The line broke.")

        asked = peer_client.asked
        with (
            mock.patch.object(peer_client, "asked", lost),
            pytest.raises((KeyboardInterrupt, Unavailable)),
        ):
            machine.join(token)
        assert control.names() == ["first", "second"]
        assert not folder_of(machine.state_dir).exists()
        with pytest.raises(Denied, match="used before"):
            Machine(control, "third").join(token)
        machine.join(token)
        assert control.names() == ["first", "second"]
        assert len(control.logins.passwords) == 1

    @BROKEN_OFF
    def test_the_answer_is_lost_and_there_is_another_token(
        self, control: ControlNode, machine: Machine
    ) -> None:
        first = control.token()
        with (
            mock.patch.object(peer_client, "asked", side_effect=Unavailable("lost")),
            pytest.raises(Unavailable),
        ):
            machine.join(first)
        machine.join(control.token())
        assert control.names() == ["first", "second"]

    @BROKEN_OFF
    def test_a_thief_of_the_token_and_the_id_has_another_key(
        self, control: ControlNode, machine: Machine
    ) -> None:
        token = control.token()
        told = machine.join(token)
        thief = Machine(control, "thief")
        thief.state_dir.mkdir(parents=True)
        (thief.state_dir / "node_id").write_text(f"{told.node_id}\n")
        with pytest.raises(Denied, match="used before"):
            thief.join(token)
        assert nothing_is_left(thief)

    @BROKEN_OFF
    @pytest.mark.parametrize("step", ["read_authority", "connect_to_control"])
    def test_interrupted_before_it_asked(
        self, control: ControlNode, machine: Machine, step: str
    ) -> None:
        token = control.token()
        with (
            mock.patch.object(peer_client, step, side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            machine.join(token)
        assert nothing_is_left(machine)
        assert control.state_of(token) == "open"

    @BROKEN_OFF
    def test_interrupted_while_it_switches(self, control: ControlNode, machine: Machine) -> None:
        machine.state_dir.mkdir(parents=True)
        store = Store(machine.config.store_url, control.world)
        migrations.upgrade(store)
        store.close()
        token = control.token()
        with (
            mock.patch("appliance.cluster.join.write_whole", side_effect=interrupted_at("node_id")),
            pytest.raises(KeyboardInterrupt),
        ):
            machine.join(token)
        assert not folder_of(machine.state_dir).exists()
        assert (machine.state_dir / "store.sqlite").exists(), "it is a lone node as before"
        machine.join(token)
        assert control.names() == ["first", "second"]

    @BROKEN_OFF
    def test_an_answer_with_the_certificate_of_another(
        self, control: ControlNode, machine: Machine
    ) -> None:
        asked = peer_client.asked
        key = certificates.make_key()
        sealing = control.admission._seal()
        from appliance.cluster import authority

        def altered(*arguments: object) -> object:
            answer: JoinAnswer = asked(*arguments)  # type: ignore[arg-type]
            made = control.read(lambda tx: authority.get(tx, sealing)).certify(
                key.public_key(), "other", is_control=False, now=control.clock.now()
            )
            return msgspec.structs.replace(answer, certificate=certificates.text_of(made))

        with (
            mock.patch.object(peer_client, "asked", altered),
            pytest.raises(Denied, match="does not fit"),
        ):
            machine.join(control.token())
        assert not folder_of(machine.state_dir).exists()


def interrupted_at(name: str) -> object:
    """Return ``write_whole`` that is interrupted at the file of a name in the state folder."""
    from appliance.files import write_whole

    def write(path: Path, content: bytes, **options: object) -> None:
        if path.name == name and path.parent.name == "state":
            raise KeyboardInterrupt
        write_whole(path, content, **options)  # type: ignore[arg-type]

    return write


class TestTokenText:
    @pytest.mark.parametrize("address", ["192.0.2.1:8774", "[fd00::1]:8774", "n1.example.net:1"])
    def test_there_and_back(self, address: str) -> None:
        made = tokens.make(address, "ab" * 32)
        assert tokens.parse(f"  {made.text}\n") == made
        assert (made.port, made.secret in repr(made)) == (int(address.rpartition(":")[2]), False)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "anynode1",
            "anynode2.{a}.{f}.{i}.{s}",
            "anynode1.{a}.{f}.{i}",
            "anynode1.{a}.{f}.{i}.{s}x",
            "anynode1.{a}.{f}.{i}.short",
            "anynode1.{a}.beef.{i}.{s}",
            "anynode1.nowhere.{f}.{i}.{s}",
            "anynode1.1.2.3.4:99999.{f}.{i}.{s}",
            "anynode1.1.2.3.4:.{f}.{i}.{s}",
            "anynode1.[::1:80.{f}.{i}.{s}",
            "anynode1.a b:80.{f}.{i}.{s}",
        ],
    )
    def test_what_is_none_is_refused_and_not_shown(self, text: str) -> None:
        whole = text.format(a="192.0.2.1:1", f="ab" * 32, i="0123456789", s="S" * 32)
        with pytest.raises(InputError, match="no token") as caught:
            tokens.parse(whole)
        assert "SSSS" not in str(caught.value)
