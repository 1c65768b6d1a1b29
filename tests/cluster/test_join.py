"""Machines join by a token, over real TLS: who gets in, who does not, and what is left."""

from __future__ import annotations

import io
import logging
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from appliance.cluster import certificates, peer_client, settings, tokens
from appliance.cluster.authority import Authority
from appliance.cluster.doors import Doors
from appliance.cluster.join import BACKUP, joining_folder_of
from appliance.cluster.membership import Membership, folder_of
from appliance.cluster.papers import write_papers
from appliance.cluster.peer_messages import JoinAnswer, Trouble
from appliance.cluster.tokens import Token
from appliance.errors import AnynodeError, Conflict, Denied, InputError, Unavailable
from appliance.messages import GetMembers
from appliance.store import Store, audit, join_tokens, members, migrations, nodes
from tests.cluster.trust import FIRST_ID, ControlNode, Eavesdropper, Machine, server_context

BAD_TOKENS = pytest.mark.faults("membership: bad tokens", quick=True)
FALSE_CLUSTERS = pytest.mark.faults("membership: false clusters", quick=True)
REMOVED = pytest.mark.faults("membership: removed nodes", quick=True)
BROKEN_OFF = pytest.mark.faults("membership: joins broken off", quick=True)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlNode]:
    made = ControlNode(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine(control: ControlNode) -> Machine:
    return Machine(control, "second")


def nothing_is_left(machine: Machine) -> bool:
    return (
        not folder_of(machine.state_dir).exists()
        and not joining_folder_of(machine.state_dir).exists()
    )


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


class TestBadTokens:
    @BAD_TOKENS
    def test_used_twice(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        with pytest.raises(Denied, match="used before"):
            Machine(control, "third").join(token)
        assert control.names() == ["first", "second"]

    @BAD_TOKENS
    def test_used_by_two_at_once(self, control: ControlNode) -> None:
        from concurrent.futures import ThreadPoolExecutor

        token = control.token()

        def attempt(name: str) -> str:
            try:
                Machine(control, name).join(token)
            except Denied as error:
                return error.exact_code
            return "in"

        with ThreadPoolExecutor(6) as pool:
            found = sorted(pool.map(attempt, [f"n{number}" for number in range(6)]))
        assert found == ["Token.Used"] * 5 + ["in"]
        assert len(control.names()) == 2

    @BAD_TOKENS
    def test_expired(self, control: ControlNode, machine: Machine) -> None:
        token = control.token(valid_s=600)
        control.clock.ahead_s = 601
        with pytest.raises(Denied, match="expired"):
            machine.join(token)
        assert control.names() == ["first"]
        assert control.state_of(token) == "expired"
        assert nothing_is_left(machine)

    @BAD_TOKENS
    def test_revoked(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        control.change(lambda tx: join_tokens.revoke(tx, token.token_id))
        with pytest.raises(Denied, match="revoked"):
            machine.join(token)
        assert control.names() == ["first"]
        assert nothing_is_left(machine)

    @BAD_TOKENS
    def test_for_another_name(self, control: ControlNode, machine: Machine) -> None:
        token = control.token(node_name="third")
        with pytest.raises(Denied, match="called third, not second"):
            machine.join(token)
        assert control.state_of(token) == "open"
        machine.join(token, name="third")
        assert control.names() == ["first", "third"]

    @BAD_TOKENS
    @pytest.mark.parametrize("part", ["token_id", "secret"])
    def test_made_up(self, control: ControlNode, machine: Machine, part: str) -> None:
        token = control.token()
        made_up = {"token_id": "0" * 10, "secret": "x" * 32}
        false = Token(**{**vars(token), part: made_up[part]})
        with pytest.raises(Denied, match="does not know this token") as caught:
            machine.join(false)
        assert caught.value.exact_code == "Token.Unknown"
        assert control.state_of(token) == "open"

    @BAD_TOKENS
    def test_whoever_guesses_learns_nothing(self, control: ControlNode, machine: Machine) -> None:
        """A used, a revoked and an unknown token differ only for who has the secret."""
        token = control.token()
        control.change(lambda tx: join_tokens.revoke(tx, token.token_id))
        with pytest.raises(Denied, match="does not know this token"):
            machine.join(Token(**{**vars(token), "secret": "x" * 32}))

    def test_a_used_one_cannot_be_revoked(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        with pytest.raises(Conflict, match="was used"):
            control.change(lambda tx: join_tokens.revoke(tx, token.token_id))

    def test_too_many_attempts_wait(self, control: ControlNode) -> None:
        """Without a second going by; another machine is not held up."""
        door = Doors(control.admission, mock.Mock(monotonic=lambda: 1000.0))

        def attempt(source: str) -> str:
            said: list[str] = []
            environ = {
                "REQUEST_METHOD": "POST",
                "REMOTE_ADDR": source,
                "CONTENT_LENGTH": "2",
                "wsgi.input": io.BytesIO(b"{}"),
            }
            body = b"".join(door.join(environ, lambda status, headers: said.append(status)))
            assert said[0].startswith("400")
            return msgspec.json.decode(body, type=Trouble).code

        codes = [attempt("192.0.2.7") for _ in range(25)]
        assert codes == ["BadInput"] * 20 + ["LimitExceeded"] * 5
        assert attempt("192.0.2.8") == "BadInput"

    def test_secrets_are_nowhere(
        self, control: ControlNode, machine: Machine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        good, bad = control.token(), control.token()
        control.change(lambda tx: join_tokens.revoke(tx, bad.token_id))
        with pytest.raises(Denied) as caught:
            machine.join(bad)
        told = machine.join(good)
        password = control.logins.passwords[told.node_id, False]
        said = "\n".join([caplog.text, *machine.said, str(caught.value), repr(good)])
        control.store.close()
        stored = b"".join(path.read_bytes() for path in control.folder.glob("cluster.sqlite*"))
        for secret in (good.secret, bad.secret, password):
            assert secret not in said
            assert secret.encode() not in stored


class TestFalseClusters:
    """Something else answers where the token says: it is told nothing that is worth anything."""

    @pytest.fixture
    def foreign(self, tmp_path: Path) -> Path:
        """Return the papers of a control node of another cluster."""
        folder = tmp_path / "foreign"
        folder.mkdir()
        import time

        write_papers(folder, Authority.make(time.time()), "127.0.0.1", FIRST_ID, time.time())
        return folder

    def attempt(
        self, machine: Machine, token: Token, context: ssl.SSLContext, authority: str
    ) -> tuple[AnynodeError, bytes]:
        between = Eavesdropper(context, authority)
        try:
            with pytest.raises((Denied, Unavailable)) as caught:
                machine.join(Token(**{**vars(token), "address": f"127.0.0.1:{between.port}"}))
        finally:
            between.close()
        return caught.value, between.heard

    @FALSE_CLUSTERS
    def test_another_authority(self, control: ControlNode, machine: Machine, foreign: Path) -> None:
        token = control.token()
        shown = (foreign / "authority.pem").read_text()
        error, heard = self.attempt(machine, token, server_context(foreign), shown)
        assert "is not the cluster that the token is from" in error.message
        assert heard.startswith(b"GET /join HTTP/1.1\r\n")
        assert token.secret.encode() not in heard
        assert b"second" not in heard
        assert control.state_of(token) == "open"
        assert nothing_is_left(machine)

    @FALSE_CLUSTERS
    def test_the_right_authority_shown_by_another(
        self, control: ControlNode, machine: Machine, foreign: Path
    ) -> None:
        """A machine in the middle passes on the certificate that everybody may see."""
        token = control.token()
        error, heard = self.attempt(machine, token, server_context(foreign), control.authority)
        assert "no node of the cluster" in error.message
        assert token.secret.encode() not in heard
        assert b"POST" not in heard
        assert nothing_is_left(machine)

    @FALSE_CLUSTERS
    @pytest.mark.parametrize("is_first", [True, False])
    def test_the_right_authority_and_another_beside_it(
        self, control: ControlNode, machine: Machine, foreign: Path, is_first: bool
    ) -> None:
        """Only the certificate whose fingerprint was compared may vouch for anybody."""
        token = control.token()
        texts = [control.authority, (foreign / "authority.pem").read_text()]
        shown = "".join(texts if is_first else reversed(texts))
        _, heard = self.attempt(machine, token, server_context(foreign), shown)
        assert token.secret.encode() not in heard
        assert b"POST" not in heard
        assert nothing_is_left(machine)

    @FALSE_CLUSTERS
    def test_a_hypervisor_in_the_middle(self, control: ControlNode, machine: Machine) -> None:
        """It has a certificate of the cluster, and still may not let anybody in."""
        third = Machine(control, "third")
        third.join(control.token())
        context = server_context(folder_of(third.state_dir))
        token = control.token()
        error, heard = self.attempt(machine, token, context, control.authority)
        assert "lets nobody in" in error.message
        assert token.secret.encode() not in heard

    @FALSE_CLUSTERS
    @pytest.mark.parametrize("shown", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAA"])
    def test_no_certificate_at_all(
        self, control: ControlNode, machine: Machine, foreign: Path, shown: str
    ) -> None:
        token = control.token()
        error, heard = self.attempt(machine, token, server_context(foreign), shown)
        assert "is not the cluster" in error.message
        assert token.secret.encode() not in heard

    @FALSE_CLUSTERS
    def test_what_speaks_no_tls(self, control: ControlNode, machine: Machine) -> None:
        import socket
        import threading

        server = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(1000)
                line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        token = Token(
            **{**vars(control.token()), "address": f"127.0.0.1:{server.getsockname()[1]}"}
        )
        with pytest.raises(Unavailable):
            machine.join(token)
        thread.join(5)
        server.close()
        assert nothing_is_left(machine)

    @FALSE_CLUSTERS
    def test_nobody_is_there(self, control: ControlNode, machine: Machine) -> None:
        control.server.close()
        with pytest.raises(Unavailable, match="No node answers"):
            machine.join(control.token())
        assert nothing_is_left(machine)


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


class TestRemoved:
    @REMOVED
    def test_its_certificate_stops_working_at_once(
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


class TestPeers:
    def test_another_member_than_the_one_meant_is_told_nothing(
        self, control: ControlNode, machine: Machine
    ) -> None:
        machine.join(control.token())
        context = machine.membership.client_context()
        with pytest.raises(Unavailable, match="is not node"):
            peer_client.connect(f"127.0.0.1:{control.port}", context, "00000000-other")

    @pytest.mark.parametrize("path", ["/settings", "/renew", "/settled", "/other", "/"])
    def test_strangers_come_to_join_only(self, control: ControlNode, path: str) -> None:
        line, node_id = peer_client.connect_to_control(
            f"127.0.0.1:{control.port}", control.authority
        )
        assert node_id == FIRST_ID
        line.request("GET", path)
        assert line.getresponse().status == 403
        line.close()

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b'{"token_id": 3}', b"[" * 15000, b"x" * 40_000]
    )
    def test_what_is_no_request_is_refused(self, control: ControlNode, body: bytes) -> None:
        line, _ = peer_client.connect_to_control(f"127.0.0.1:{control.port}", control.authority)
        line.request("POST", "/join", body)
        assert line.getresponse().status == 400
        line.close()

    def test_old_tls_is_refused(self, control: ControlNode) -> None:
        import socket

        context = ssl.create_default_context(cadata=control.authority)
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        raw = socket.create_connection(("127.0.0.1", control.port), 5)
        with pytest.raises(ssl.SSLError), raw:
            context.wrap_socket(raw, server_hostname="x")


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
