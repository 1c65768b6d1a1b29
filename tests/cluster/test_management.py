"""The client of RabbitMQ's management API, against a door that stumbles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from appliance.cluster import management
from appliance.cluster.management import Access, Management
from appliance.errors import Denied, Unavailable


class Door(HTTPServer):
    """Answers with these statuses, and then with 204."""

    statuses: list[int]
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: Door

    def do_DELETE(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.end_headers()

    def log_request(self, *_: object, **__: object) -> None:
        """Say nothing."""


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(management, "STUMBLED_S", 0.01)
    with Door(("127.0.0.1", 0), _Handler) as made:
        made.statuses, made.asked = [], []
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def client(door: Door) -> Management:
    url = f"http://admin:secret@127.0.0.1:{door.server_address[1]}"
    return Management(Access(urls=(url,), vhost="anynode"))


def test_a_broker_that_stumbles_is_asked_again(door: Door) -> None:
    door.statuses = [500, 500]
    client(door).close_connections("h-1", "the node was removed")
    assert door.asked == ["/api/connections/username/h-1"] * 3


def test_a_broker_that_goes_on_stumbling_is_given_up(door: Door) -> None:
    door.statuses = [500] * 10
    with pytest.raises(Unavailable, match="500"):
        client(door).remove_user("h-1")
    assert len(door.asked) == management.TRIES


def test_a_refusal_is_final(door: Door) -> None:
    door.statuses = [400]
    with pytest.raises(Denied, match="400"):
        client(door).remove_user("h-1")
    assert len(door.asked) == 1
