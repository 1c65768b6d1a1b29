"""Headers that a broker passes on, and that its client cannot read."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from appliance.bus import Delivery
from appliance.bus.amqp_link import PREFETCH
from appliance.messages import Message, Report, encode
from appliance.testing.bus import DEADLINE_S, Listener, wait_until
from tests.bus.places import HYPERVISOR, OTHER, Places, serve
from tests.bus.test_amqp_nodes import report, wait_well

_HEADERS, _MESSAGE_ID, _TYPE, _USER_ID = 1 << 13, 1 << 7, 1 << 5, 1 << 4


def _nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = b"\x01aF" + struct.pack(">I", len(value)) + value
    return value


UNREADABLE = {
    "a time after all times": b"\x01tT" + struct.pack(">Q", 2**63),
    "tables in tables": _nested(5000),
    "a name that is no text": b"\x01\xfft\x01",
}


class _Raw(pika.BasicProperties):  # type: ignore[misc]
    """Properties with a table of headers that was written by hand."""

    def __init__(self, table: bytes, message_id: bytes, kind: bytes = b"Report") -> None:
        super().__init__()
        texts = (message_id, kind, f"h-{HYPERVISOR}".encode())
        self._text = b"".join(bytes([len(text)]) + text for text in texts)
        self._table = table

    def encode(self) -> list[bytes]:
        flags = struct.pack(">H", _HEADERS | _MESSAGE_ID | _TYPE | _USER_ID)
        return [flags, struct.pack(">I", len(self._table)), self._table, self._text]


@contextmanager
def attacker(places: Places) -> Iterator[BlockingChannel]:
    """Use a hypervisor's login with a client of one's own."""
    url = places.vhost.admit(HYPERVISOR, is_control=False)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


@pytest.mark.faults("hostile: hypervisor", quick=True)
def test_what_cannot_be_read_ends_no_connection(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    """It would come again, to each control node in turn, and end the connections of all."""
    control, other = places.control(), places.hypervisor(OTHER)
    reports = Listener()
    serve(control, "controller", casts={Report: reports})
    control.start()
    wait_well(control)
    before = control.well_for_s()
    tables = [_Raw(table, b"m-%d" % n) for n, table in enumerate(UNREADABLE.values())]
    with attacker(places) as channel:
        for raw in (*tables, _Raw(b"", b"m-\xff"), _Raw(b"", b"m-9", b"\xff")):
            for verb in ("cast", "hint", "call"):
                # Its own name for another's report: refused where it can be read.
                channel.basic_publish("anynode", f"{verb}.controller", encode(report("n9")), raw)
    other.start()
    other.cast("controller", report(OTHER))
    assert reports.wait_for(1) == [report(OTHER)]
    for queue in ("controller", "dead"):
        wait_until(lambda queue=queue: places.vhost.depth(queue) == 0, f"{queue} is empty")  # type: ignore[misc]
    assert control.well_for_s() > before, "the connection went on"
    assert "properties that cannot be read" in caplog.text
    assert "are no texts" in caplog.text


@pytest.mark.faults("hostile: hypervisor", quick=True)
def test_many_messages_of_one_id_take_one_place(places: Places) -> None:
    """A process holds so many messages at once: copies that nobody ends would fill its hands."""
    control, other = places.control(), places.hypervisor(OTHER)
    heard, may_end = Listener(), threading.Event()

    def handle(message: Message, delivery: Delivery) -> None:
        if isinstance(message, Report) and message.node_id == HYPERVISOR:
            may_end.wait(2 * DEADLINE_S)
        heard(message, delivery)

    serve(control, "controller", casts={Report: handle})
    control.start()
    wait_well(control)
    try:
        with attacker(places) as channel:
            for _ in range(3 * PREFETCH):
                raw = _Raw(b"", b"the same")
                channel.basic_publish("anynode", "cast.controller", encode(report()), raw)
        other.start()
        other.cast("controller", report(OTHER, "i-2"))
        assert heard.wait_for(1) == [report(OTHER, "i-2")]
    finally:
        may_end.set()
    wait_until(lambda: places.vhost.depth("controller") == 0, "the queue is empty")
