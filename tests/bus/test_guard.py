"""Who may say what: every way to say what is not one's to say is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from appliance.bus.guard import EXPIRES_AT, SIGNATURE, VALID_S, Guard, Sender, Sent
from appliance.errors import Denied, Stale
from appliance.messages import KINDS, GetMembers, Message, Order, Report, ReportConfirmed, encode
from appliance.world import SystemClock
from tests.bus.signer import TestSigner

KEY = "cast.compute.n1"
ORDER = Order(instance_id="i-1", epoch=1, revision=1, verb="run")
REPORT = Report(instance_id="i-1", node_id="n1", epoch=1, seq=1, revision=1, state="running")


class Ahead(SystemClock):
    """A clock that is ahead."""

    def now(self) -> float:
        return super().now() + VALID_S + 5


def guard(login: str = "h-n1", node_id: str = "n1", *, is_signed: bool = True) -> Guard:
    return Guard(login, node_id, TestSigner(node_id) if is_signed else None, SystemClock())


def sent(message: Message, key: str, login: str | None, headers: dict[str, Any]) -> Sent:
    return Sent(key, type(message).__name__, "m-1", encode(message), login, headers)


def signed(message: Message, key: str = KEY, message_id: str = "m-1") -> dict[str, Any]:
    return guard("c-n0", "n0").headers(key, type(message).__name__, message_id, encode(message))


def test_an_order_of_a_control_node_is_taken() -> None:
    guard().check(sent(ORDER, KEY, "c-n0", signed(ORDER)), ORDER)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("for another node", {"key": "cast.compute.n2"}),
        ("of another kind", {"kind": "ReportConfirmed"}),
        ("with another id", {"message_id": "m-2"}),
        ("with another body", {"body": b"{}"}),
        ("that lives longer", {"headers": {**signed(ORDER), EXPIRES_AT: 2**40}}),
        ("without a signature", {"headers": {}}),
        ("with a signature of text", {"headers": {**signed(ORDER), SIGNATURE: "x"}}),
        ("with a signature that is not one", {"headers": {**signed(ORDER), SIGNATURE: b"n0 x"}}),
        ("with a bare moment", {"headers": {EXPIRES_AT: 2**40}}),
        ("from another control node", {"login": "c-n7"}),
        ("from a hypervisor", {"login": "h-n2"}),
        ("from this very node", {"login": "h-n1"}),
        ("from a login of no node", {"login": "admin"}),
        ("from nobody", {"login": None}),
    ],
)
def test_an_order_is_refused(what: str, change: dict[str, Any]) -> None:
    with pytest.raises(Denied):
        guard().check(sent(ORDER, KEY, "c-n0", signed(ORDER))._replace(**change), ORDER)


def test_an_order_that_has_expired_is_dropped() -> None:
    late = Guard("h-n1", "n1", TestSigner("n1"), Ahead())
    with pytest.raises(Stale):
        late.check(sent(ORDER, KEY, "c-n0", signed(ORDER)), ORDER)


def test_what_a_hypervisor_has_to_say_is_taken() -> None:
    control = guard("c-n0", "n0")
    control.check(sent(REPORT, "cast.controller", "h-n1", {}), REPORT)
    question = GetMembers(node_id="n1", known_revision=0)
    control.check(sent(question, "call.controller", "h-n1", {}), question)


def test_a_hypervisor_says_nothing_for_another() -> None:
    with pytest.raises(Denied, match="for node n1"):
        guard("c-n0", "n0").check(sent(REPORT, "cast.controller", "h-n2", {}), REPORT)


def test_a_hypervisor_says_nothing_but_what_it_may() -> None:
    may = {"Report", "Bind", "Inventory", "GetPolicy", "GetMembers", "Heartbeat"}
    assert {name for name, kind in KINDS.items() if kind.from_hypervisor} == may
    control = guard("c-n0", "n0")
    with pytest.raises(Denied):
        control.check(sent(ORDER, "cast.controller", "h-n1", {}), ORDER)


def test_what_a_hypervisor_may_say_it_says_to_all_and_to_no_node() -> None:
    with pytest.raises(Denied):
        guard("c-n0", "n0").check(sent(REPORT, "cast.compute.n0", "h-n1", {}), REPORT)


def test_an_answer_comes_from_whom_was_asked() -> None:
    key, message = "reply.n1.x", ReportConfirmed(instance_id="i-1", epoch=1, seq=1)
    of_control = sent(message, key, "c-n0", signed(message, key))
    node = guard()
    node.check_answer(of_control, "controller")
    for wrong in (
        of_control._replace(message_id="of another question"),
        of_control._replace(headers={}),
        of_control._replace(login="h-n2"),
        of_control._replace(login=None),
    ):
        with pytest.raises(Denied):
            node.check_answer(wrong, "controller")
    control = guard("c-n0", "n0")
    of_node = sent(message, "reply.n0.x", "h-n2", {})
    control.check_answer(of_node, "compute.n2")
    with pytest.raises(Denied):
        control.check_answer(of_node, "compute.n1")


def test_without_a_signer_nothing_is_signed_and_senders_still_count() -> None:
    node = guard(is_signed=False)
    node.check(sent(ORDER, KEY, "c-n0", {}), ORDER)
    assert node.headers(KEY, "Order", "m-1", b"") == {}
    with pytest.raises(Denied):
        node.check(sent(ORDER, KEY, "h-n2", {}), ORDER)


def test_only_what_changes_a_node_is_signed() -> None:
    control = guard("c-n0", "n0")
    keys = ("cast.compute.n1", "hint.datapath.n1", "hint.member", "reply.n1.x", "call.compute.n1")
    assert all(control.headers(key, "Order", "m-1", b"") for key in keys)
    others = ("cast.controller", "hint.controller", "call.network", "cast.scheduler")
    assert not any(control.headers(key, "Order", "m-1", b"") for key in others)
    assert not any(guard().headers(key, "Order", "m-1", b"") for key in (*keys, *others))


def test_a_login_of_its_own_kind_is_trusted_like_itself() -> None:
    assert guard("admin", "n0").sender("admin") == Sender("n0", True)
    assert guard("c-n0", "n0").sender("h-n1") == Sender("n1", False)


def test_refusals_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    control = guard("c-n0", "n0")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            with pytest.raises(Denied):
                control.check(sent(REPORT, "cast.controller", "h-n2", {}), REPORT)
    assert control.refused == {("h-n2", "Report"): 5}
    assert len(caplog.records) == 1
