"""A node that is told to stop does so soon, whatever goes on or hangs; later it goes on."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest
from anynode_compute_fake.machine import FakeCompute

from appliance.hookspecs import hookimpl
from appliance.node import Node
from appliance.role import Periodic
from tests.chain.conftest import MakeChain
from tests.chain.harness import DEADLINE_S, Chain, wait_until

LONG_S = 600.0


class Dawdler:
    """Work that does not end until the test does."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self.may_go_on.wait(LONG_S)


@pytest.fixture
def dawdler() -> Iterator[Dawdler]:
    made = Dawdler()
    yield made
    made.may_go_on.set()


def stop_within(node: Node, deadline_s: float, limit_s: float) -> None:
    """Stop a node; it is an error when that takes longer than the limit."""
    stopping = threading.Thread(target=node.stop, args=(deadline_s,), daemon=True)
    began = time.monotonic()
    stopping.start()
    stopping.join(limit_s)
    assert not stopping.is_alive(), f"it has not stopped after {time.monotonic() - began:.1f} s"


def ignore_shutdowns(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no instance shut down, as one that still boots; return what tells that one was asked."""
    asked = threading.Event()

    @hookimpl
    def compute_shut_down(self: FakeCompute, instance_id: str) -> None:
        asked.set()

    monkeypatch.setattr(FakeCompute, "compute_shut_down", compute_shut_down)
    return asked


def test_a_role_that_never_stops_is_named_and_left(
    chain: Chain, dawdler: Dawdler, caplog: pytest.LogCaptureFixture
) -> None:
    node = chain.node
    node.roles["datapath"] = dataclasses.replace(node.roles["datapath"], stop=dawdler)
    stop_within(node, 0.5, DEADLINE_S)
    assert "the thread stop does not end; it is in" in caplog.text
    assert "Dawdler" in caplog.text or "__call__" in caplog.text
    assert all(one.daemon for one in threading.enumerate() if one.name == "stop")
    chain.start()
    chain.assert_clean()


def test_rounds_that_never_end_share_one_deadline(chain: Chain, dawdler: Dawdler) -> None:
    node = chain.node
    rounds = [Dawdler() for _ in range(4)]
    for one in rounds:
        node._repeat(Periodic(name="dawdle", every_s=0.01, run=one))
    assert all(one.begun.wait(DEADLINE_S) for one in rounds)
    stop_within(node, 2.0, 6.0)
    for one in rounds:
        one.may_go_on.set()


def test_an_instance_that_shuts_down_is_not_waited_for(
    make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ignore_shutdowns(monkeypatch)
    chain = make_chain(compute={"shutdown_s": LONG_S})
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    chain.stop_instances(instance_id)
    assert asked.wait(DEADLINE_S)
    stop_within(chain.node, LONG_S, DEADLINE_S)
    assert chain.machine.running(), "nobody has waited long enough to take its power away"
    asked.clear()
    chain.start()
    assert asked.wait(DEADLINE_S), "it is asked again"
    chain.machine.compute.compute_power_off(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.assert_clean()


def test_launches_that_wait_for_a_slot_wait_for_the_next_start(
    make_chain: MakeChain, dawdler: Dawdler
) -> None:
    chain = make_chain(compute={"parallel_launches": 1})
    chain.faults.at("step.define.before", dawdler, nth=1)
    ids = chain.run_instances(4)
    assert dawdler.begun.wait(DEADLINE_S)
    wait_until(lambda: _waiting(chain) == len(ids), "all to be at work")
    node = chain.node
    stop_within(node, 0.5, DEADLINE_S)
    dawdler.may_go_on.set()
    wait_until(lambda: not _waiting(chain), "the threads to end")
    assert chain.faults.passed.count("step.bind.before") == 1
    chain.start()
    chain.wait_for("running", *ids)
    chain.assert_clean()


def _waiting(chain: Chain) -> int:
    """Return how many instances are worked on, or wait for a slot."""
    return chain.node.work._running
