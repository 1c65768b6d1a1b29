"""T41: each kind of message is doubled, dropped, delayed and overtaken behind the broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from appliance.messages import KINDS
from tests.faults.mortals import APIS, Mortals, Standing, four_nodes, mortals
from tests.services.postgresql import PostgreSQL
from tests.services.postman import Fault, Postman, postman
from tests.services.rabbitmq import Broker, VirtualHost

ZONE = "local-1a"
OFTEN_S = 20.0
"""Seconds within which what is sent again and again is sent once more."""

REBOOT_S = 8.0

WITHIN_A_PROCESS = {
    *("AttachPort", "PortAttached", "GuardPort", "RaisePort", "DetachPort", "UnguardPort"),
    *("KeepPorts", "Done"),
}
"""Between compute and datapath of one node, past the broker."""

IN_NO_LIFE = {"DeadLetter", "FetchImage", "MembersChanged"}
"""Told when something dies, an image comes or a node joins; tests of those lose them, too."""

KINDS_TRIED = sorted({*KINDS} - WITHIN_A_PROCESS - IN_NO_LIFE)
TIMES = {Fault.DROP: 3}
"""Messages that are harmed; of other faults all are."""

MAY_END_A_LAUNCH = {(kind, Fault.DROP) for kind in ("Bind", "Bound", "GetPolicy", "PolicyAnswer")}
"""Without an answer a node gives a launch up, and there is no other node in the zone."""

QUICK = ("Order", Fault.DUPLICATE)


class Mailed(VirtualHost):
    """A virtual host that nodes reach through a postman."""

    def __init__(self, broker: Broker, name: str, through: Postman) -> None:
        super().__init__(broker, name)
        self._through = through

    def _moved(self, url: str) -> str:
        return url.replace(f":{self.broker.port}/", f":{self._through.port}/")

    @property
    def url(self) -> str:
        """The URL of who administers it."""
        return self._moved(super().url)

    def admit(self, node_id: str, *, is_control: bool) -> str:
        """Make a node's login and its queue; return the URL with the login."""
        return self._moved(super().admit(node_id, is_control=is_control))


@pytest.fixture(scope="module")
def mail(rabbitmq: Broker) -> Iterator[Postman]:
    """The postman of the cluster."""
    with postman(rabbitmq.port) as made:
        yield made


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql: PostgreSQL,
    rabbitmq: Broker,
    mail: Postman,
) -> Iterator[Standing]:
    """A cluster whose messages go through the postman's hands."""

    @contextmanager
    def make() -> Iterator[Mortals]:
        folder = tmp_path_factory.mktemp("mortals")
        mail.arm("", Fault.DROP, 0)
        vhost = Mailed(rabbitmq, rabbitmq.new_vhost().name, mail)
        with mortals(folder, postgresql, vhost) as cluster:
            yield four_nodes(cluster)

    made = Standing(make)
    yield made
    made.end()


def live(cluster: Mortals, *, may_fail: bool = False) -> str:
    """Launch an instance, reboot it, read its console and terminate it."""
    (instance_id,) = cluster.born(via=APIS, zone=ZONE)

    def state() -> str:
        (found,) = cluster.described(instance_id, via=APIS).values()
        assert found["State"]["Name"] != "terminated" or found["StateReason"]["Message"]
        return str(found["State"]["Name"])

    ends = ("running", "terminated") if may_fail else ("running",)
    cluster.wait_for(lambda: state() in ends, "it to be launched")
    if state() == "running":
        reboot(cluster, instance_id)
        cluster.ask("get_console_output", via=APIS, InstanceId=instance_id)
    cluster.end(instance_id, via=APIS)
    cluster.reach("terminated", instance_id, via=APIS)
    return instance_id


def reboot(cluster: Mortals, instance_id: str) -> None:
    def has_rebooted() -> bool:
        return "rebooting" in cluster.mortals["n3"].hypervisor()[instance_id].console

    # A reboot is a wish that is not kept: who misses it asks again.
    for _ in range(TIMES[Fault.DROP] + 1):
        cluster.ask("reboot_instances", via=APIS, InstanceIds=[instance_id])
        with suppress(AssertionError):
            cluster.wait_for(has_rebooted, "it to reboot", REBOOT_S)
            return
    raise AssertionError(f"it does not reboot\n{cluster.logs()}")


@pytest.mark.faults("cluster: enumeration")
def test_t41_every_kind_goes_through_the_broker(cluster: Mortals, mail: Postman) -> None:
    live(cluster)
    cluster.wait_for(lambda: {*KINDS_TRIED} <= {*mail.met}, "every kind of message", OFTEN_S)
    assert WITHIN_A_PROCESS.isdisjoint(mail.met)
    cluster.assert_sound()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(
            kind,
            fault,
            id=f"{kind}-{fault.value}",
            marks=pytest.mark.faults(f"messages: {fault.value}", quick=(kind, fault) == QUICK),
        )
        for kind in KINDS_TRIED
        for fault in Fault
    ],
)
def test_t41_a_message_goes_astray(
    cluster: Mortals, mail: Postman, kind: str, fault: Fault
) -> None:
    mail.arm(kind, fault, TIMES.get(fault, 1 << 30))
    try:
        ended = live(cluster, may_fail=(kind, fault) in MAY_END_A_LAUNCH)
        cluster.wait_for(lambda: mail.done[kind] > 0, f"a {kind} to be sent", OFTEN_S)
    finally:
        mail.arm("", Fault.DROP, 0)
    cluster.assert_sound()
    cluster.assert_gone(ended)
    cluster.assert_visible(ended, via=APIS)
