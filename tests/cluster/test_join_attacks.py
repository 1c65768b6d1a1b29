"""Who does not get in: bad tokens, false clusters, strangers at the door; over real TLS."""

from __future__ import annotations

import io
import logging
import ssl
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from appliance.cluster import peer_client
from appliance.cluster.authority import Authority
from appliance.cluster.doors import Doors
from appliance.cluster.membership import folder_of
from appliance.cluster.papers import write_papers
from appliance.cluster.peer_messages import Trouble
from appliance.cluster.tokens import Token
from appliance.errors import AnynodeError, Conflict, Denied, Unavailable
from appliance.store import join_tokens
from tests.cluster.trust import (
    FIRST_ID,
    ControlNode,
    Eavesdropper,
    Machine,
    nothing_is_left,
    server_context,
)

BAD_TOKENS = pytest.mark.faults("membership: bad tokens", quick=True)
FALSE_CLUSTERS = pytest.mark.faults("membership: false clusters", quick=True)


class TestBadTokens:
    @BAD_TOKENS
    def test_t58_used_twice(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        with pytest.raises(Denied, match="used before"):
            Machine(control, "third").join(token)
        assert control.names() == ["first", "second"]

    @BAD_TOKENS
    def test_t58_used_by_two_at_once(self, control: ControlNode) -> None:
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
    def test_t58_expired(self, control: ControlNode, machine: Machine) -> None:
        token = control.token(valid_s=600)
        control.clock.ahead_s = 601
        with pytest.raises(Denied, match="expired"):
            machine.join(token)
        assert control.names() == ["first"]
        assert control.state_of(token) == "expired"
        assert nothing_is_left(machine)

    @BAD_TOKENS
    def test_t58_revoked(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        control.change(lambda tx: join_tokens.revoke(tx, token.token_id))
        with pytest.raises(Denied, match="revoked"):
            machine.join(token)
        assert control.names() == ["first"]
        assert nothing_is_left(machine)

    @BAD_TOKENS
    def test_t58_for_another_name(self, control: ControlNode, machine: Machine) -> None:
        token = control.token(node_name="third")
        with pytest.raises(Denied, match="called third, not second"):
            machine.join(token)
        assert control.state_of(token) == "open"
        machine.join(token, name="third")
        assert control.names() == ["first", "third"]

    @BAD_TOKENS
    @pytest.mark.parametrize("part", ["token_id", "secret"])
    def test_t58_made_up(self, control: ControlNode, machine: Machine, part: str) -> None:
        token = control.token()
        made_up = {"token_id": "0" * 10, "secret": "x" * 32}
        false = Token(**{**vars(token), part: made_up[part]})
        with pytest.raises(Denied, match="does not know this token") as caught:
            machine.join(false)
        assert caught.value.exact_code == "Token.Unknown"
        assert control.state_of(token) == "open"

    @BAD_TOKENS
    def test_t58_whoever_guesses_learns_nothing(
        self, control: ControlNode, machine: Machine
    ) -> None:
        """A used, a revoked and an unknown token differ only for who has the secret."""
        token = control.token()
        control.change(lambda tx: join_tokens.revoke(tx, token.token_id))
        with pytest.raises(Denied, match="does not know this token"):
            machine.join(Token(**{**vars(token), "secret": "x" * 32}))

    def test_t58_a_used_one_cannot_be_revoked(self, control: ControlNode, machine: Machine) -> None:
        token = control.token()
        machine.join(token)
        with pytest.raises(Conflict, match="was used"):
            control.change(lambda tx: join_tokens.revoke(tx, token.token_id))

    def test_t58_too_many_attempts_wait(self, control: ControlNode) -> None:
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

    def test_t58_secrets_are_nowhere(
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
    def test_t58_another_authority(
        self, control: ControlNode, machine: Machine, foreign: Path
    ) -> None:
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
    def test_t58_the_right_authority_shown_by_another(
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
    def test_t58_the_right_authority_and_another_beside_it(
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
    def test_t58_a_hypervisor_in_the_middle(self, control: ControlNode, machine: Machine) -> None:
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
    def test_t58_no_certificate_at_all(
        self, control: ControlNode, machine: Machine, foreign: Path, shown: str
    ) -> None:
        token = control.token()
        error, heard = self.attempt(machine, token, server_context(foreign), shown)
        assert "is not the cluster" in error.message
        assert token.secret.encode() not in heard

    @FALSE_CLUSTERS
    def test_t58_what_speaks_no_tls(self, control: ControlNode, machine: Machine) -> None:
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
    def test_t58_nobody_is_there(self, control: ControlNode, machine: Machine) -> None:
        control.server.close()
        with pytest.raises(Unavailable, match="No node answers"):
            machine.join(control.token())
        assert nothing_is_left(machine)


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
