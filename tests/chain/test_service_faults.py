"""Firewall, hypervisor or DHCP fail for a while: launches wait or say why, what runs goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import select

from appliance.datapath import role as datapath_role
from appliance.errors import CommandFailed, Unavailable
from appliance.hooks import Compute, Firewall, Network
from appliance.model import NetworkState
from appliance.store import timeline
from appliance.store.schema import outbox
from tests.chain.conftest import MakeChain
from tests.chain.harness import Chain, wait_until

NFT = pytest.mark.faults("services: nft", quick=True)
LIBVIRT = pytest.mark.faults("services: libvirtd", quick=True)
DHCP = pytest.mark.faults("services: dnsmasq", quick=True)

REFUSALS = {
    "error": "nftables refused a change, the rules stay as they were: syntax error",
    "lock": "nftables refused a change, the rules stay as they were: Resource busy",
    "ENOSPC": "nftables refused a change, the rules stay as they were: No space left on device",
}


@contextmanager
def failing(
    kind: type, methods: tuple[str, ...], error: Callable[[], Exception]
) -> Iterator[list[str]]:
    """Let methods of a driver raise until the block ends; return which were called."""
    called: list[str] = []

    def fail(name: str) -> Callable[..., Any]:
        def method(*arguments: object, **named: object) -> Any:
            called.append(name)
            raise error()

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            patch.setattr(kind, name, fail(name))
        yield called


@pytest.fixture
def chain(make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(datapath_role, "POLICY_SILENCE_S", 0.2)
    monkeypatch.setattr(datapath_role, "REPAIR_EVERY_S", 0.2)
    made: Chain = make_chain()
    return made


def run(chain: Chain) -> str:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    return instance_id


def rules(chain: Chain) -> Any:
    return chain.machine.firewall._rules.policies[chain.network_id]


def assert_nothing_is_open(chain: Chain) -> None:
    """Fail when a link is up whose tap has no rules."""
    state = chain.machine.firewall.firewall_state()
    ports = chain.machine.network.node.ports.values()
    assert {port.attached.tap for port in ports if port.is_up} <= set(state.taps)
    assert state.is_guarded


@NFT
@pytest.mark.parametrize("name", REFUSALS)
def test_a_firewall_that_refuses_fails_the_launch_and_keeps_its_rules(
    chain: Chain, name: str
) -> None:
    runs = run(chain)
    before = rules(chain)
    with failing(Firewall, ("sync", "update"), lambda: CommandFailed(REFUSALS[name])) as called:
        (victim,) = chain.run_instances()
        (instance,) = chain.wait_for("terminated", victim)
        assert instance.reason
        assert instance.reason.message.startswith(f"Step apply-firewall failed: {REFUSALS[name]}")
        assert_nothing_is_open(chain)
        assert rules(chain) == before
    assert called
    entries = chain.read(lambda tx: timeline.of_instance(tx, victim))
    (failed,) = [entry for entry in entries if entry.outcome == "failed"]
    assert failed.name == "apply-firewall"
    assert failed.causes == (REFUSALS[name],)
    assert chain.machine.running() == {runs: 1}
    chain.assert_clean()
    run(chain)
    chain.assert_clean()


@NFT
def test_rules_that_changed_meanwhile_come_into_force_when_the_firewall_is_well(
    chain: Chain,
) -> None:
    runs = run(chain)
    before = rules(chain)
    with failing(Firewall, ("sync", "update"), lambda: CommandFailed(REFUSALS["ENOSPC"])):
        chain.node.store.transaction(lambda tx: _change_rules(tx, chain))
        wait_until(lambda: rules(chain) == before, "the last good rules are in force", 2)
        assert_nothing_is_open(chain)
    wait_until(lambda: rules(chain) != before, "the new rules are in force")
    assert chain.machine.running() == {runs: 1}
    chain.assert_clean()


def _change_rules(tx: Any, chain: Chain) -> None:
    from appliance.store import policy

    change = policy.Change(kind="rules", subject=chain.group_id)
    vpc_id = rules(chain).network.vpc_id
    policy.changed(tx, vpc_id, [change])


@NFT
def test_a_removal_waits_for_the_firewall(chain: Chain) -> None:
    runs, leaver = run(chain), run(chain)
    with failing(Firewall, ("sync", "update"), lambda: CommandFailed(REFUSALS["lock"])):
        chain.terminate(leaver)
        wait_until(lambda: chain.machine.running() == {runs: 1}, "it is off")
        assert_nothing_is_open(chain)
    chain.wait_for("terminated", leaver)
    assert chain.machine.running() == {runs: 1}
    chain.assert_clean()


@NFT
def test_a_firewall_that_cannot_say_what_it_has(chain: Chain) -> None:
    runs = run(chain)
    with failing(Firewall, ("state",), lambda: CommandFailed("nft list failed: Resource busy")):
        (victim,) = chain.run_instances()
        (instance,) = chain.wait_for("terminated", victim)
        assert instance.reason
        assert "nft list failed" in instance.reason.message
        assert_nothing_is_open(chain)
    assert chain.machine.running() == {runs: 1}
    chain.assert_clean()


@DHCP
def test_services_come_back_although_the_firewall_fails(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(chain)
    is_dead = threading.Event()
    is_dead.set()
    prepare, listing = Network.prepare, Network.list

    def revive(self: Network, network: Any) -> None:
        prepare(self, network)
        is_dead.clear()

    def look(self: Network) -> NetworkState:
        wrong = ("The DHCP server (dnsmasq) does not run.",) if is_dead.is_set() else ()
        found = listing(self)
        return NetworkState(network_ids=found.network_ids, ports=found.ports, warnings=wrong)

    monkeypatch.setattr(Network, "prepare", revive)
    monkeypatch.setattr(Network, "list", look)
    error = lambda: CommandFailed("nft list failed: Resource busy")  # noqa: E731
    with failing(Firewall, ("state", "sync", "update", "guard"), error):
        wait_until(lambda: not is_dead.is_set(), "the DHCP server is back", 5)


@LIBVIRT
def test_a_hypervisor_that_is_away_makes_launches_wait(chain: Chain) -> None:
    runs = run(chain)
    away = lambda: Unavailable("libvirtd at qemu:///system does not answer.")  # noqa: E731
    methods = ("define", "start", "list", "power_off", "remove", "capacity", "events", "shut_down")
    with failing(Compute, methods, away) as called:
        (waiting,) = chain.run_instances()
        wait_until(lambda: called.count("list") >= 3, "it is asked again and again")
        assert chain.get(waiting).state == "pending"
        chain.terminate(runs)
        assert_nothing_is_open(chain)
    chain.wait_for("running", waiting)
    chain.wait_for("terminated", runs)
    assert chain.machine.running() == {waiting: 1}
    chain.assert_clean()


@LIBVIRT
def test_why_a_launch_waits_is_in_its_timeline(chain: Chain) -> None:
    words = "Could not list the instances: libvirtd did not answer within 20 s."
    with failing(Compute, ("list",), lambda: Unavailable(words)):
        (waiting,) = chain.run_instances()

        def causes() -> set[str]:
            entries = chain.read(lambda tx: timeline.of_instance(tx, waiting))
            return {cause for entry in entries for cause in entry.causes}

        wait_until(lambda: words in causes(), lambda: f"{causes()}")
    chain.wait_for("running", waiting)
    chain.assert_clean()


@LIBVIRT
def test_a_launch_that_waits_too_long_says_for_what(make_chain: MakeChain) -> None:
    chain = make_chain(controller={"progress_s": 0.3, "sweep_every_s": 0.1, "give_up_s": 1.0})
    words = "Could not list the instances: libvirtd did not answer within 20 s."
    with failing(Compute, ("list",), lambda: Unavailable(words)):
        (waiting,) = chain.run_instances()
        wait_until(lambda: chain.get(waiting).desired == "terminated", "it is given up")
    (instance,) = chain.wait_for("terminated", waiting)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert instance.reason.message.startswith("The launch showed no progress for ")
    assert instance.reason.message.endswith(words)
    chain.assert_clean()


@LIBVIRT
@pytest.mark.parametrize("method", ["define", "start"])
def test_a_hypervisor_that_answers_errors_fails_the_launch(chain: Chain, method: str) -> None:
    runs = run(chain)
    words = f"Could not {method} instance: internal error: process exited while connecting."
    with failing(Compute, (method,), lambda: CommandFailed(words)):
        (victim,) = chain.run_instances()
        (instance,) = chain.wait_for("terminated", victim)
    assert instance.reason
    assert instance.reason.message.startswith(f"Step {method} failed: {words}")
    assert chain.machine.running() == {runs: 1}
    chain.assert_clean()


@LIBVIRT
def test_a_hypervisor_that_comes_and_goes(chain: Chain) -> None:
    calls = iter(range(10_000))
    inner = {name: getattr(Compute, name) for name in ("define", "start", "list", "remove")}

    def now_and_then(name: str) -> Callable[..., Any]:
        def method(self: Compute, *arguments: Any, **named: Any) -> Any:
            if next(calls) % 3 == 0:
                raise Unavailable("libvirtd went away.")
            return inner[name](self, *arguments, **named)

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in inner:
            patch.setattr(Compute, name, now_and_then(name))
        ids = chain.run_instances(6)
        wait_until(
            lambda: all(chain.get(one).state.value in ("running", "terminated") for one in ids),
            lambda: f"{[chain.get(one) for one in ids]}",
        )
        for one in ids:
            instance = chain.get(one)
            if instance.state.value == "terminated":
                assert instance.reason
                assert "libvirtd went away." in instance.reason.message
    wait_until(
        lambda: (
            set(chain.machine.running())
            == {one for one in ids if chain.get(one).state.value == "running"}
        ),
        lambda: f"{chain.machine.running()}",
    )
    chain.assert_clean()
    waiting = chain.read(lambda tx: tx.execute(select(outbox.c.kind)).scalars().all())
    assert list(waiting) == []
