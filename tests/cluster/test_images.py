"""Images come from other nodes over mutual TLS; whatever those do, the digest decides (T52)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.cluster import image_door, image_peers, image_tickets, peer_service
from appliance.cluster.image_door import ImageDoor
from appliance.cluster.image_peers import sources_of
from appliance.cluster.membership import Membership, folder_of
from appliance.config import ClusterSettings, Config
from appliance.errors import Denied, NotFound, Unavailable
from appliance.images.cache import ImageCache
from appliance.images.store import ImageStore
from appliance.model import ImageGrant, ImageHolder, ImageRef
from tests.cluster.fakes import wait_until
from tests.cluster.trust import FIRST_ID, ControlNode, Machine

HOSTILE = pytest.mark.faults("hostile: image peers (T52)", quick=True)
CONTENT = random.Random(1).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
IMAGE = ImageRef(image_id="ami-1", sha256=SHA, format="raw", size_bytes=len(CONTENT))


class Peer:
    """A member with an image store, which others may fetch from."""

    def __init__(self, folder: Path, membership: Membership, node_id: str, port: int) -> None:
        self.node_id = node_id
        self.port = port
        self.membership = membership
        self.store = ImageStore(folder)
        self.asked: list[str] = []
        from appliance.world import SystemClock

        self.door = ImageDoor(
            self.store,
            membership.signer,
            SystemClock(),
            lambda environ: str(environ[peer_service.MEMBER_ID]),
        )
        membership.doors[image_tickets.PATH] = self.answer

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append(str(environ.get("HTTP_RANGE")))
        return self.door(environ, start)

    @property
    def holder(self) -> ImageHolder:
        return ImageHolder(node_id=self.node_id, address=f"127.0.0.1:{self.port}")

    def hold(self, content: bytes = CONTENT) -> None:
        digest = hashlib.sha256(content).hexdigest()
        image = ImageRef(image_id="x", sha256=digest, format="raw", size_bytes=len(content))
        self.store.receive(image, [content])


class Place:
    """A control node ``first``, members ``second`` and ``third``; the third fetches."""

    def __init__(self, folder: Path) -> None:
        self.control = ControlNode(folder)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.control.close)
        self.peers = [Peer(folder / "i1", self.control.membership, FIRST_ID, self.control.port)]
        self.machines = [Machine(self.control, name) for name in ("second", "third")]
        for number, machine in enumerate(self.machines, start=2):
            told = machine.join(self.control.token())
            membership = machine.membership
            self.peers.append(Peer(folder / f"i{number}", membership, told.node_id, told.port))
            config = Config(cluster=ClusterSettings(address="127.0.0.1", port=told.port))
            server = peer_service.make_server(membership, config)
            server.open()
            self.stack.callback(server.close)
        self.control.tell(*(peer.membership for peer in self.peers))
        self.first, self.second, self.third = self.peers
        self.cache = ImageCache(self.third.store)

    def grant(self, *holders: ImageHolder, node_id: str = "", sha256: str = SHA) -> ImageGrant:
        return image_tickets.grant(
            self.control.membership.signer,
            sha256,
            node_id or self.third.node_id,
            holders,
            self.control.clock.now(),
        )

    def fetch(self, *holders: ImageHolder, image: ImageRef = IMAGE) -> Path:
        return self.fetch_with(self.grant(*holders, sha256=image.sha256), image)

    def fetch_with(self, grant: ImageGrant, image: ImageRef = IMAGE) -> Path:
        context = self.third.membership.client_context
        return self.cache.fetch(image, sources_of(grant, context, self.control.clock))

    def files(self) -> list[str]:
        """Return all that the third node has in its store, whatever it is."""
        return sorted(os.listdir(self.third.store.directory))

    def false_peer(self, script: Callable[[FalsePeer, ssl.SSLSocket, int, int], None]) -> FalsePeer:
        """Return a member, the second, that answers as a script says."""
        folder = folder_of(self.machines[0].state_dir)
        made = FalsePeer(folder, self.second.node_id, script)
        self.stack.callback(made.close)
        return made


class FalsePeer:
    """A member that does not do what it should: it has the papers of one."""

    def __init__(
        self,
        folder: Path,
        node_id: str,
        script: Callable[[FalsePeer, ssl.SSLSocket, int, int], None],
    ) -> None:
        self._script = script
        self.asked = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "node.pem", folder / "node.key")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.holder = ImageHolder(
            node_id=node_id, address=f"127.0.0.1:{self._socket.getsockname()[1]}"
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._answer(raw)

    def _answer(self, raw: socket.socket) -> None:
        with raw, self._context.wrap_socket(raw, server_side=True) as line:
            line.settimeout(10)
            said = b""
            while b"\r\n\r\n" not in said and (piece := line.recv(65536)):
                said += piece
            found = re.search(rb"bytes=(\d+)-(\d+)", said)
            assert found is not None
            self.asked += 1
            self._script(self, line, int(found[1]), int(found[2]) + 1)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def head(length: int, status: str = "206 Partial Content", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n".encode()


@pytest.fixture(scope="module")
def whole_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("images"))
    with made.stack:
        yield made


@pytest.fixture
def place(whole_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place, with no image anywhere and parts of 1 MB."""
    monkeypatch.setattr(image_peers, "PART_BYTES", 1_000_000)
    monkeypatch.setattr(image_peers, "_PAUSE_S", 0.0)
    for peer in whole_place.peers:
        peer.asked.clear()
        for file in peer.store.list():
            peer.store.remove(file.sha256)
    whole_place.cache = ImageCache(whole_place.third.store)
    return whole_place


class TestFetch:
    def test_an_image_comes_part_by_part(self, place: Place) -> None:
        place.first.hold()
        assert place.fetch(place.first.holder).read_bytes() == CONTENT
        assert place.first.asked == [
            "bytes=0-999999",
            "bytes=1000000-1999999",
            "bytes=2000000-2999999",
        ]

    def test_from_any_node_that_has_it(self, place: Place) -> None:
        place.second.hold()
        path = place.fetch(place.first.holder, place.second.holder)
        assert path.read_bytes() == CONTENT
        assert place.first.asked == ["bytes=0-999999"], "it does not have it, and says so"

    def test_once_for_many_launches(self, place: Place) -> None:
        place.first.hold()
        with ThreadPoolExecutor(6) as pool:
            paths = list(pool.map(lambda _: place.fetch(place.first.holder), range(6)))
        assert len(set(paths)) == 1
        assert len(place.first.asked) == 3

    def test_those_that_wait_see_it_come_on(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("appliance.images.cache._WAIT_S", 0.01)
        seen, has_begun, goes_on = threading.Event(), threading.Event(), threading.Event()

        def slowly(done_bytes: int, total_bytes: int) -> None:
            has_begun.set()
            assert goes_on.wait(20)

        def waiting(done_bytes: int, total_bytes: int) -> None:
            assert total_bytes == len(CONTENT)
            if done_bytes:
                seen.set()

        place.first.hold()
        grant = place.grant(place.first.holder)
        context = place.third.membership.client_context
        sources = sources_of(grant, context, place.control.clock)
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(place.cache.fetch, IMAGE, sources, progress=slowly)
            assert has_begun.wait(20)
            two = pool.submit(place.cache.fetch, IMAGE, sources, progress=waiting)
            assert seen.wait(20)
            goes_on.set()
            assert one.result(20) == two.result(20)

    def test_nobody_has_it(self, place: Place) -> None:
        with pytest.raises(Unavailable, match="does not hold"):
            place.fetch(place.first.holder, place.second.holder)
        assert place.files() == []

    def test_no_image_is_too_small(self, place: Place) -> None:
        place.first.hold(b"x")
        digest = hashlib.sha256(b"x").hexdigest()
        image = ImageRef(image_id="ami-2", sha256=digest, format="kernel", size_bytes=1)
        assert place.fetch(place.first.holder, image=image).read_bytes() == b"x"


def breaks_off(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    """Give what is right, and hang up in the middle of each part."""
    line.sendall(head(end - begin) + CONTENT[begin : begin + max((end - begin) // 2, 1)])


def truncated(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(head(end - begin))


def altered(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    wrong = bytearray(CONTENT[begin:end])
    wrong[-1] ^= 1
    line.sendall(head(end - begin) + wrong)


def altered_and_hung_up(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    """Give wrong bytes at first and nothing after, so that others go on with what is right."""
    if peer.asked == 1:
        altered(peer, line, begin, end)


def endless(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(1000):
        line.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def too_much(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(head(1 << 40) + bytes(1 << 20))


def more_than_said(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(head(end - begin) + CONTENT[begin:end] + bytes(100_000))


def packed(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    import gzip

    bomb = gzip.compress(bytes(end - begin))
    line.sendall(head(len(bomb), more="Content-Encoding: gzip\r\n") + bomb)


def a_whole_file(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(head(len(CONTENT), "200 OK") + CONTENT)


def no_http(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
    line.sendall(b"\x00" * 70_000)


SCRIPTS = [truncated, altered, endless, too_much, packed, a_whole_file, no_http]


class TestFalsePeers:
    @HOSTILE
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_nothing_of_it_is_kept(
        self, place: Place, script: Callable[[FalsePeer, ssl.SSLSocket, int, int], None]
    ) -> None:
        false = place.false_peer(script)
        with pytest.raises(Unavailable):
            place.fetch(false.holder)
        assert place.files() == []

    @HOSTILE
    @pytest.mark.parametrize("script", [*SCRIPTS, altered_and_hung_up])
    def test_another_node_is_asked(
        self, place: Place, script: Callable[[FalsePeer, ssl.SSLSocket, int, int], None]
    ) -> None:
        false = place.false_peer(script)
        place.first.hold()
        path = place.fetch(false.holder, place.first.holder)
        assert path.read_bytes() == CONTENT
        assert place.files() == [SHA]

    @HOSTILE
    def test_more_than_was_asked_for_is_not_read(self, place: Place) -> None:
        false = place.false_peer(more_than_said)
        assert place.fetch(false.holder).read_bytes() == CONTENT

    @HOSTILE
    def test_a_line_that_breaks_is_taken_up_where_it_broke(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(image_peers, "PART_BYTES", 1 << 30)
        false = place.false_peer(breaks_off)
        assert place.fetch(false.holder).read_bytes() == CONTENT
        assert false.asked < 40, "each time half of what lacked came, and none of it twice"

    @HOSTILE
    def test_another_node_goes_on_where_one_has_ended(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def once(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
            if begin == 0:
                line.sendall(head(end - begin) + CONTENT[begin:end])

        false = place.false_peer(once)
        place.first.hold()
        assert place.fetch(false.holder, place.first.holder).read_bytes() == CONTENT
        assert place.first.asked == ["bytes=1000000-1999999", "bytes=2000000-2999999"]

    @HOSTILE
    @pytest.mark.parametrize(
        "target", ["http://169.254.169.254/", "http://0x7f000001:{port}/", "//127.0.0.1:{port}/"]
    )
    def test_nobody_follows_a_redirect(self, place: Place, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as inner:
            inner.settimeout(0.2)
            place_of = target.format(port=inner.getsockname()[1])

            def elsewhere(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
                line.sendall(head(0, "302 Found", f"Location: {place_of}\r\n"))

            with pytest.raises(Unavailable, match="status 302"):
                place.fetch(place.false_peer(elsewhere).holder)
            with pytest.raises(TimeoutError):
                inner.accept()

    @HOSTILE
    @pytest.mark.parametrize("has_other", [True, False])
    def test_a_node_that_trickles_is_given_up(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, has_other: bool
    ) -> None:
        """Time goes by in the reader's clock with each piece, so that no test waits for it."""
        monkeypatch.setattr(image_peers, "SLOW_AFTER_S", 0.0)
        least = "SLOW_BYTES_PER_S" if has_other else "SLOWEST_BYTES_PER_S"
        monkeypatch.setattr(image_peers, least, 1 << 60)
        false = place.false_peer(breaks_off)
        place.first.hold()
        if has_other:
            assert place.fetch(false.holder, place.first.holder).read_bytes() == CONTENT
            assert false.asked == 1
        else:
            with pytest.raises(Unavailable, match="KiB a second"):
                place.fetch(false.holder)

    @HOSTILE
    @pytest.mark.parametrize("has_other", [True, False])
    def test_a_node_that_falls_silent_is_given_up(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, has_other: bool
    ) -> None:
        monkeypatch.setattr(image_peers, "SILENCE_S", 1.0)

        def silent(peer: FalsePeer, line: ssl.SSLSocket, begin: int, end: int) -> None:
            line.sendall(head(end - begin) + (CONTENT[:1000] if begin == 0 else b""))
            line.recv(1)

        false = place.false_peer(silent)
        if has_other:
            place.first.hold()
            path = place.fetch(false.holder, place.first.holder)
            assert path.read_bytes() == CONTENT
            assert place.first.asked[0] == "bytes=1000-1000999"
        else:
            with pytest.raises(Unavailable, match="timed out"):
                place.fetch(false.holder)
            assert place.files() == []

    @HOSTILE
    def test_who_answers_must_be_the_node_that_was_meant(self, place: Place) -> None:
        place.first.hold()
        wrong = ImageHolder(node_id=place.second.node_id, address=place.first.holder.address)
        with pytest.raises(Unavailable, match="is not node"):
            place.fetch(wrong)
        assert place.first.asked == []

    @HOSTILE
    def test_nobody_is_there(self, place: Place) -> None:
        place.first.hold()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            address = f"127.0.0.1:{gone.getsockname()[1]}"
        holder = ImageHolder(node_id=place.second.node_id, address=address)
        assert place.fetch(holder, place.first.holder).read_bytes() == CONTENT


class TestTickets:
    def refused(self, place: Place, grant: ImageGrant) -> None:
        place.first.hold()
        with pytest.raises(Unavailable, match="status 403"):
            place.fetch_with(grant)
        assert place.files() == []

    def test_of_another_node(self, place: Place) -> None:
        self.refused(place, place.grant(place.first.holder, node_id=place.second.node_id))

    def test_of_another_image(self, place: Place) -> None:
        other = place.grant(place.first.holder, sha256="0" * 64)
        self.refused(place, ImageGrant(sha256=SHA, holders=other.holders, ticket=other.ticket))

    def test_that_a_hypervisor_made(self, place: Place) -> None:
        signer = place.third.membership.signer
        ticket = image_tickets.make(signer, SHA, place.third.node_id, place.control.clock.now())
        self.refused(place, ImageGrant(sha256=SHA, holders=(place.first.holder,), ticket=ticket))

    @pytest.mark.parametrize("ticket", ["", "AAAA", "é", "x" * 9000, "...."])
    def test_that_is_none(self, place: Place, ticket: str) -> None:
        signer = place.control.membership.signer
        with pytest.raises(Denied, match="that is none"):
            image_tickets.check(signer, ticket, SHA, place.third.node_id, 0.0)

    def test_that_has_expired(self, place: Place) -> None:
        signer, now = place.control.membership.signer, place.control.clock.now()
        ticket = image_tickets.make(signer, SHA, "n", now)
        image_tickets.check(signer, ticket, SHA, "n", now + image_tickets.VALID_S - 1)
        with pytest.raises(Denied, match="expired"):
            image_tickets.check(signer, ticket, SHA, "n", now + image_tickets.VALID_S + 1)

    def test_whose_end_was_moved(self, place: Place) -> None:
        import base64

        import msgspec

        signer, now = place.control.membership.signer, place.control.clock.now()
        ticket = image_tickets.make(signer, SHA, "n", now)
        parts = msgspec.msgpack.decode(base64.urlsafe_b64decode(ticket))
        parts[2] += 1
        longer = base64.urlsafe_b64encode(msgspec.msgpack.encode(parts)).decode()
        with pytest.raises(Denied, match="has signed"):
            image_tickets.check(signer, longer, SHA, "n", now)


class TestDoor:
    def ask(self, place: Place, target: str, headers: dict[str, str]) -> int:
        from appliance.cluster import peer_client

        line = peer_client.connect(
            place.first.holder.address,
            place.third.membership.client_context(),
            place.first.node_id,
        )
        try:
            line.request("GET", target, headers=headers)
            return line.getresponse().status
        finally:
            line.close()

    @pytest.mark.parametrize(
        "part", ["", "bytes=0-", "bytes=-5", "bytes=5-4", "bytes=0-3000000", "bytes=0-1,3-4"]
    )
    def test_parts_that_are_none(self, place: Place, part: str) -> None:
        place.first.hold()
        headers = {image_tickets.HEADER: place.grant().ticket, "Range": part}
        assert self.ask(place, f"/images/{SHA}", headers) == 400

    @pytest.mark.parametrize(
        "name", ["", "..", "../../etc/shadow", "%2e%2e/x", SHA.upper(), f"{SHA}/x", f"/{SHA}"]
    )
    def test_names_that_are_none(self, place: Place, name: str) -> None:
        place.first.hold()
        headers = {image_tickets.HEADER: place.grant().ticket, "Range": "bytes=0-1"}
        assert self.ask(place, f"/images/{name}", headers) in (400, 404)


class TestPlaces:
    """As many as the door lets in; the others wait or ask elsewhere."""

    def take(self, place: Place, node_id: str = "", part: str = "bytes=0-9") -> tuple[str, Any]:
        """Ask the first node's door for ten bytes that are not read yet."""
        node_id = node_id or place.third.node_id
        told: list[str] = []
        environ = {
            "PATH_INFO": f"/images/{SHA}",
            "REQUEST_METHOD": "GET",
            "HTTP_ANYNODE_TICKET": place.grant(node_id=node_id).ticket,
            "HTTP_RANGE": part,
            peer_service.MEMBER_ID: node_id,
        }
        answer = place.first.door(environ, lambda status, _: told.append(status[:3]))
        return told[0], answer

    @pytest.fixture
    def all_taken(self, place: Place) -> Iterator[list[Any]]:
        """What has taken all places of the first node, for two nodes."""
        place.first.hold()
        nodes = [place.third.node_id, place.second.node_id] * 2
        taken = [self.take(place, node_id) for node_id in nodes]
        assert [status for status, _ in taken] == ["206"] * image_door.AT_ONCE
        yield [part for _, part in taken]
        for _, part in taken:
            part.close()

    def test_they_are_bounded(self, place: Place, all_taken: list[Any]) -> None:
        assert self.take(place, "another")[0] == "503"
        all_taken[0].close()
        all_taken[0].close()
        status, part = self.take(place, "another")
        assert status == "206"
        assert self.take(place, "yet another")[0] == "503"
        part.close()

    def test_one_node_does_not_take_all(self, place: Place) -> None:
        place.first.hold()
        taken = [self.take(place) for _ in range(image_door.OF_ONE_NODE + 1)]
        status, part = self.take(place, place.second.node_id)
        assert [one for one, _ in taken] + [status] == ["206", "206", "503", "206"]
        for one in (part, *(given for had, given in taken if had == "206")):
            assert b"".join(one) == CONTENT[:10]

    def test_what_is_read_or_refused_holds_none(self, place: Place) -> None:
        place.first.hold()
        for _ in range(10):
            status, part = self.take(place)
            assert (status, b"".join(part)) == ("206", CONTENT[:10])
            assert self.take(place, part="bytes=5-9999999")[0] == "400"

    @pytest.mark.usefixtures("all_taken")
    def test_another_is_asked_meanwhile(self, place: Place) -> None:
        place.second.hold()
        assert place.fetch(place.first.holder, place.second.holder).read_bytes() == CONTENT
        assert len(place.second.asked) == 3

    def test_one_waits_for_its_turn(self, place: Place, all_taken: list[Any]) -> None:
        with ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(place.fetch, place.first.holder)
            wait_until(lambda: len(place.first.asked) > 2, "it asks again")
            for part in all_taken:
                part.close()
            assert fetching.result(20).read_bytes() == CONTENT

    @pytest.mark.usefixtures("all_taken")
    def test_not_for_ever(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_peers, "BUSY_S", 0.0)
        with pytest.raises(Unavailable, match="is busy with others"):
            place.fetch(place.first.holder)
        assert place.files() == []


def test_no_source_knows_it_by_another_name(place: Place) -> None:
    """Where all say that they do not hold it, that is what is told."""
    source = sources_of(
        place.grant(place.first.holder), place.third.membership.client_context, place.control.clock
    )[0]
    with pytest.raises(NotFound):
        list(source.read(IMAGE))
