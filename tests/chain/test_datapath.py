"""Ports whose calls come late, whose instance is gone, or whose network was taken away."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from appliance.datapath import policy as datapath_policy
from appliance.datapath import role as datapath_role
from appliance.datapath.role import Datapath
from appliance.errors import Conflict, Unavailable
from appliance.hooks import Network
from appliance.messages import (
    AttachPort,
    DetachPort,
    Done,
    GetPolicy,
    GuardPort,
    KeepPorts,
    PolicyAnswer,
    PortAttached,
    node_topic,
)
from appliance.model import AttachedPort, NetworkSpec, NetworkState, PortSpec
from appliance.network import role as network_role
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain

IMPATIENT = {"bus": {"call_deadline_s": 1.0}, "scheduler": {"attempts": 1}}
RARELY = {"compute": {"inventory_every_s": 600.0}}

GetDatapath = Callable[[], Datapath]


@pytest.fixture
def datapath(monkeypatch: pytest.MonkeyPatch) -> GetDatapath:
    """Return the datapath of the node that was started last."""
    made: list[Datapath] = []

    class Noted(Datapath):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(datapath_role, "Datapath", Noted)
    return lambda: made[-1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AttachPort]:
    """Every port that was to be attached."""
    questions: list[AttachPort] = []
    attach = Datapath.attach

    def noted(self: Datapath, question: AttachPort) -> PortAttached:
        questions.append(question)
        return attach(self, question)

    monkeypatch.setattr(Datapath, "attach", noted)
    return questions


def run(chain: Chain) -> str:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    return instance_id


def end(chain: Chain, instance_id: str) -> None:
    chain.terminate(instance_id)
    chain.wait_for("terminated", instance_id)


def port_ids(chain: Chain) -> list[str]:
    return [port.port_id for port in chain.machine.network.network_list().ports]


def whose(datapath: Datapath, port: PortSpec) -> str:
    found = datapath.describe(port.network_id, port.addresses[0])
    return found.metadata.instance_id if found else ""


# -- calls that come late -------------------------------------------------------------------------


def test_an_attach_that_outlives_its_caller_leaves_nothing(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(**IMPATIENT, **RARELY)
    undone = threading.Event()
    attach = Network.attach

    def slow(self: Network, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        undone.wait(10.0)
        return attach(self, network, port)

    monkeypatch.setattr(Network, "attach", slow)
    # The undo gives up waiting for its turn after a second, and leaves no point behind it.
    chain.faults.at("undo.attach-ports.before", threading.Timer(2.0, undone.set).start, nth=1)
    (instance_id,) = chain.run_instances()
    chain.wait_for("terminated", instance_id)
    assert undone.is_set()
    chain.assert_clean()
    assert port_ids(chain) == []


def test_a_port_of_nobody_goes(
    make_chain: MakeChain, datapath: GetDatapath, asked: list[AttachPort]
) -> None:
    chain = make_chain(bus={"call_deadline_s": 2.0})
    kept, gone = run(chain), run(chain)
    end(chain, gone)
    datapath().attach(asked[1])
    assert len(port_ids(chain)) == 2
    chain.assert_clean()
    assert port_ids(chain) == [asked[0].port.port_id]
    assert whose(datapath(), asked[0].port) == kept
    assert whose(datapath(), asked[1].port) == ""


def test_a_port_that_has_just_come_is_spared(
    make_chain: MakeChain, datapath: GetDatapath, asked: list[AttachPort]
) -> None:
    chain = make_chain(**RARELY)
    run(chain)
    datapath().keep(KeepPorts(instance_ids=()))
    assert port_ids(chain) == [asked[0].port.port_id]
    chain.assert_clean()


def test_a_new_port_takes_the_address_of_a_stale_one(
    make_chain: MakeChain,
    datapath: GetDatapath,
    asked: list[AttachPort],
    caplog: pytest.LogCaptureFixture,
) -> None:
    chain = make_chain(**RARELY)
    old = run(chain)
    end(chain, old)
    datapath().attach(asked[0])
    assert whose(datapath(), asked[0].port) == old
    chain.restart()
    new = run(chain)
    assert asked[-1].port.addresses == asked[0].port.addresses
    assert whose(datapath(), asked[-1].port) == new
    assert port_ids(chain) == [asked[-1].port.port_id]
    assert f"{asked[0].port.port_id} of {old}" in caplog.text
    chain.restart()
    assert whose(datapath(), asked[-1].port) == new
    chain.assert_clean()


def test_a_late_port_does_not_take_the_address_of_one_that_has_it(
    make_chain: MakeChain, datapath: GetDatapath, asked: list[AttachPort]
) -> None:
    chain = make_chain(**RARELY)
    old = run(chain)
    end(chain, old)
    new = run(chain)
    assert asked[1].port.addresses == asked[0].port.addresses
    with pytest.raises(Conflict, match=asked[1].port.port_id):
        datapath().attach(asked[0])
    datapath().detach(DetachPort(instance_id=old, port_id=asked[0].port.port_id))
    assert whose(datapath(), asked[1].port) == new
    assert port_ids(chain) == [asked[1].port.port_id]
    chain.assert_clean()


# -- networks that were taken away ----------------------------------------------------------------


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the network plugin warns of beside what is; a port that it does not have counts."""
    lost: list[str] = []
    look = Network.list

    def list_with_warnings(self: Network) -> NetworkState:
        state = look(self)
        here = {port.port_id for port in state.ports}
        return replace(state, warnings=tuple(one for one in lost if one not in here))

    monkeypatch.setattr(Network, "list", list_with_warnings)
    return lost


def take_away(chain: Chain) -> None:
    """Take networks and ports away, as one who deletes the bridge and the taps."""
    chain.machine.network.node.networks.clear()
    chain.machine.network.node.ports.clear()


def test_ports_of_a_network_that_was_taken_away_come_back(
    make_chain: MakeChain,
    datapath: GetDatapath,
    asked: list[AttachPort],
    damage: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    chain = make_chain(**RARELY)
    run(chain)
    port_id = asked[0].port.port_id
    damage.append(port_id)
    take_away(chain)
    datapath().repair()
    assert port_ids(chain) == [port_id]
    assert chain.machine.network.node.ports[port_id].is_up
    said = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one for one in said if "1 of its 1 ports" in one and port_id in one], said
    caplog.clear()
    datapath().repair()
    assert not caplog.records


def test_a_port_without_rules_comes_back_with_its_link_down(
    make_chain: MakeChain, datapath: GetDatapath, asked: list[AttachPort], damage: list[str]
) -> None:
    chain = make_chain(**RARELY)
    ended = run(chain)
    end(chain, ended)
    port_id = asked[0].port.port_id
    datapath().attach(asked[0])
    damage.append(port_id)
    take_away(chain)
    datapath().repair()
    assert port_ids(chain) == [port_id]
    assert not chain.machine.network.node.ports[port_id].is_up


def test_ports_that_were_taken_away_while_the_node_was_down_come_back(
    make_chain: MakeChain, asked: list[AttachPort], damage: list[str]
) -> None:
    chain = make_chain(**RARELY)
    run(chain)
    damage.append(asked[0].port.port_id)
    chain.stop()
    take_away(chain)
    chain.start()
    assert port_ids(chain) == [asked[0].port.port_id]


def test_one_port_that_cannot_come_back_does_not_keep_the_others(
    make_chain: MakeChain,
    datapath: GetDatapath,
    asked: list[AttachPort],
    damage: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chain = make_chain(**RARELY)
    run(chain)
    run(chain)
    bad, good = (question.port.port_id for question in asked)
    damage += [bad, good]
    take_away(chain)
    attach = Network.attach

    def picky(self: Network, network: NetworkSpec, port: PortSpec) -> AttachedPort:
        if port.port_id == bad:
            raise Conflict("Its name is taken.")
        return attach(self, network, port)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "attach", picky)
        datapath().repair()
    assert port_ids(chain) == [good]
    assert "Its name is taken." in caplog.text
    datapath().repair()
    assert port_ids(chain) == sorted([bad, good])


def test_what_cannot_be_repaired_is_said_once(
    make_chain: MakeChain,
    datapath: GetDatapath,
    asked: list[AttachPort],
    damage: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(make_chain(**RARELY))
    damage.append("The sky is down.")
    for _ in range(3):
        datapath().repair()
    assert sum("The sky is down." in one.message for one in caplog.records) == 1
    damage.clear()
    datapath().repair()
    damage.append("The sky is down.")
    datapath().repair()
    assert sum("The sky is down." in one.message for one in caplog.records) == 2


def test_who_waits_for_rules_learns_that_the_network_role_is_silent(
    make_chain: MakeChain, datapath: GetDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question within has less time than the one around it, though it waits in a line."""
    chain = make_chain(**IMPATIENT, **RARELY)
    instance_id = run(chain)
    (port_id,) = port_ids(chain)
    network_id = datapath()._network_of(port_id)
    over, asked = threading.Event(), threading.Event()

    def silent(_parts: object, _question: GetPolicy) -> PolicyAnswer:
        asked.set()
        over.wait(20)
        raise Unavailable("It is over.")

    monkeypatch.setattr(datapath_policy, "FRESH_S", 0.0)
    monkeypatch.setattr(network_role, "get_policy", silent)
    question = GuardPort(instance_id=instance_id, port_id=port_id)
    topic = node_topic("datapath", chain.node.node_id)

    def refresh() -> None:
        with contextlib.suppress(Unavailable):
            datapath().policies.refresh(network_id)

    other = threading.Thread(target=refresh)
    other.start()
    try:
        assert asked.wait(10)
        with pytest.raises(Unavailable, match="network did not answer GetPolicy"):
            chain.node.bus.call(topic, question, Done, chain.config.bus.call_deadline_s)
    finally:
        over.set()
        other.join(10)
