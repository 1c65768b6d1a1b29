"""The kernel refuses, is busy, or has no room: the last good rules stay, and nothing opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anynode_firewall_nftables.driver import NftablesFirewall
from anynode_firewall_nftables.kernel import Ruleset

from appliance.errors import CommandFailed, Stale
from appliance.firewall import diff
from appliance.run import run
from appliance.testing.firewall import allow, make_group, make_network, make_policy
from appliance.testing.firewall_lab import FirewallLab
from appliance.testing.firewall_packets import Bench, answer_to

pytestmark = [pytest.mark.node, pytest.mark.faults("services: nft", quick=True)]

EVERYTHING = (allow(peer="0.0.0.0/0"), allow(peer="::/0"))
REFUSALS = {
    "error": "Error: syntax error, unexpected newline",
    "lock": "Error: Could not process rule: Resource busy",
    "interrupted": "netlink: Error: cache initialization failed: Interrupted system call",
    "ENOSPC": "Error: Could not process rule: No space left on device",
    "ENOMEM": "Error: Could not process rule: Cannot allocate memory",
    "EMSGSIZE": "Error: Could not process rule: Message too long",
}


class Refusing:
    """libnftables, whose next calls fail with a text; ``is_meant`` says which commands."""

    def __init__(self, real: Any, text: str, times: int, is_meant: Callable[[str], bool]) -> None:
        self._real = real
        self._text = text
        self._is_meant = is_meant
        self.left = times
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def cmd(self, command: str) -> tuple[int, str, str]:
        if self.left and self._is_meant(command):
            self.left -= 1
            self.refused += 1
            return 1, "", self._text
        answer: tuple[int, str, str] = self._real.cmd(command)
        return answer


def is_change(command: str) -> bool:
    return not command.startswith("list ")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FirewallLab]:
    lab = FirewallLab(NftablesFirewall(tmp_path))
    yield lab
    lab.close()


@pytest.fixture
def bench(lab: FirewallLab) -> Bench:
    return Bench(lab, make_network(1))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], int]]:
    """A function that lets the next commands be refused and returns how many were."""
    real = Ruleset._context

    def begin(
        text: str, times: int = 10**6, is_meant: Callable[[str], bool] = is_change
    ) -> Callable[[], int]:
        made: list[Refusing] = []

        def context(self: Ruleset) -> Refusing:
            if not made:
                made.append(Refusing(real(self), text, times, is_meant))
            made[0]._real = real(self)
            return made[0]

        monkeypatch.setattr(Ruleset, "_context", context)
        return lambda: sum(one.refused for one in made)

    return begin


def ruleset(lab: FirewallLab) -> str:
    return lab.namespace.call(run, ["nft", "--stateless", "list", "ruleset"], deadline_s=30)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_change_keeps_the_last_good_rules_and_packets_their_verdict(
    bench: Bench,
    refuse: Callable[..., Callable[[], int]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    before = ruleset(bench.lab)
    old, wider = bench.policy, make_group("sg-b", EVERYTHING, bench.b.addresses)
    refused = refuse(REFUSALS[name])
    with pytest.raises(CommandFailed, match="the rules stay as they were"):
        bench.update(groups=(old.groups[0], wider))
    newer = msgspec.structs.replace(old, revision=old.revision + 5, groups=(old.groups[0], wider))
    with pytest.raises(CommandFailed, match="the rules stay as they were"):
        bench.lab.firewall.sync(newer)
    with pytest.raises(CommandFailed):
        bench.lab.firewall.guard()
    with pytest.raises(CommandFailed):
        bench.lab.firewall.forget(old.network.network_id)
    assert refused() >= 4
    monkeypatch.undo()
    assert ruleset(bench.lab) == before
    bench.check(bench.packet(), passes=True)
    bench.check(bench.packet(destination_port=8), passes=False)
    bench.policy = old
    bench.update(groups=(old.groups[0], wider))
    bench.check(bench.packet(destination_port=8), passes=True)


def test_a_kernel_that_is_busy_for_a_moment_is_asked_again(
    bench: Bench, refuse: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    refused = refuse(REFUSALS["lock"], times=3)
    wider = make_group("sg-b", EVERYTHING, bench.b.addresses)
    bench.update(groups=(bench.policy.groups[0], wider))
    assert refused() == 3
    monkeypatch.undo()
    bench.check(bench.packet(destination_port=8), passes=True)


def test_a_new_tap_stays_closed_when_its_rules_are_refused(
    lab: FirewallLab, refuse: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network(1)
    lab.firewall.guard()
    small = make_policy(network, 1, ports=1)
    lab.firewall.sync(small)
    large = make_policy(network, 2, ports=3)
    refuse(REFUSALS["ENOSPC"])
    with pytest.raises(CommandFailed):
        lab.firewall.update(diff(small, large))
    state = lab.firewall.state()
    assert state.taps == (small.ports[0].tap,)
    assert state.is_guarded
    assert state.revisions == {network.network_id: 1}
    monkeypatch.undo()
    lab.firewall.update(diff(small, large))
    assert len(lab.firewall.state().taps) == 3


def test_what_cannot_be_read_back_is_an_error_and_is_made_good(
    bench: Bench, refuse: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    old = bench.policy
    refuse(REFUSALS["interrupted"], is_meant=lambda command: not is_change(command))
    with pytest.raises(CommandFailed):
        bench.lab.firewall.sync(msgspec.structs.replace(old, revision=old.revision + 1))
    monkeypatch.undo()
    bench.lab.firewall.sync(msgspec.structs.replace(old, revision=old.revision + 2))
    assert bench.lab.firewall.state().revisions[old.network.network_id] == old.revision + 2
    bench.check(bench.packet(), passes=True)
    bench.check(bench.packet(destination_port=8), passes=False)


def test_flows_that_could_not_be_cut_are_cut_at_the_next_try(
    bench: Bench, refuse: Callable[..., Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    flow = bench.packet()
    bench.check(flow, passes=True)
    assert bench.does_pass(answer_to(flow))
    old = bench.policy
    closed = tuple(msgspec.structs.replace(group, ingress=()) for group in old.groups)
    refused = refuse(REFUSALS["ENOMEM"], is_meant=lambda command: "known" in command)
    with pytest.raises(CommandFailed):
        bench.update(groups=closed)
    assert refused()
    monkeypatch.undo()
    with pytest.raises(Stale):
        bench.update(groups=closed, revision=old.revision + 2)
    bench.policy = msgspec.structs.replace(old, revision=old.revision + 3, groups=closed)
    bench.lab.firewall.sync(bench.policy)
    assert not bench.does_pass(answer_to(flow), wanted=False)
    bench.check(flow, passes=False)
