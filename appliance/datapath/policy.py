"""Keeping the firewall at the policy of the network role: ask for what changed, apply, compare."""

from __future__ import annotations

import logging
import threading

from appliance.bus import Bus
from appliance.datapath.reach import ReachKeeper
from appliance.errors import AnynodeError, Conflict, NotFound, Stale
from appliance.firewall.policy import apply_delta, without_unused_groups
from appliance.hooks import Firewall
from appliance.messages import GetPolicy, PolicyAnswer
from appliance.model import FirewallState, NetworkPolicy, PolicyDelta
from appliance.world import Clock

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""Seconds for which a policy that has a port is not asked for again to guard the port."""


class PolicyKeeper:
    """The policy of each network of this node: what is in force, and how it gets there.

    A network's policy changes under its lock, so that two answers never cross.
    """

    def __init__(
        self,
        bus: Bus,
        firewall: Firewall,
        reach: ReachKeeper,
        node_id: str,
        clock: Clock,
        deadline_s: float,
    ) -> None:
        self._bus = bus
        self._firewall = firewall
        self._reach = reach
        self._node_id = node_id
        self._clock = clock
        self._deadline_s = deadline_s
        self._policies: dict[str, NetworkPolicy] = {}
        self._asked_at: dict[str, float] = {}
        self._heard_of: dict[str, int] = {}
        self._rests_s: dict[str, float] = {}
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()

    def _lock(self, network_id: str) -> threading.RLock:
        with self._guard:
            return self._locks.setdefault(network_id, threading.RLock())

    def watch(self, network_id: str) -> None:
        """Keep the policy of a network from now on."""
        with self._guard:
            self._asked_at.setdefault(network_id, float("-inf"))

    def watched(self) -> list[str]:
        """Return the networks whose policy is kept."""
        with self._guard:
            return list(self._asked_at)

    def refresh(self, network_id: str, *, is_whole: bool = False) -> None:
        """Bring the firewall to the network role's revision.

        :param is_whole: ask for the whole policy, whatever is in force.
        :raises Unavailable: the network role does not answer; what is in force stays.
        """
        with self._lock(network_id):
            known = None if is_whole else self._policies.get(network_id)
            question = GetPolicy(
                node_id=self._node_id,
                network_id=network_id,
                known_revision=known.revision if known else -1,
                known_group_ids=tuple(group.group_id for group in known.groups) if known else (),
                reach_revision=self._reach.revision(network_id),
            )
            answer = self._bus.call("network", question, PolicyAnswer, self._deadline_s)
            self._asked_at[network_id] = self._clock.monotonic()
            if answer.policy is not None:
                self._sync(answer.policy)
            elif answer.delta is not None and known is not None:
                if self._policies.get(network_id) is not known:
                    # In one thread that does other work while it waits, another has overtaken it.
                    return
                self._update(known, answer.delta)
            if answer.reach is not None:
                self._reach.update(network_id, answer.reach)

    def hear(self, network_id: str, revision: int, rest_s: float) -> None:
        """Catch up with news: at once, or with others that come while its network rests.

        Each launch is news to all nodes of its network. What is wanted now is asked for by
        :meth:`guard`; the rest may come together.

        :param rest_s: seconds that shall lie between the last question and this one.

        :raises Unavailable: the network role does not answer; what is in force stays.
        """
        with self._guard:
            if network_id not in self._asked_at:
                return
            self._heard_of[network_id] = max(revision, self._heard_of.get(network_id, revision))
            self._rests_s[network_id] = rest_s
        if self._has_rested(network_id):
            self._catch_up(network_id)

    def follow(self) -> None:
        """Catch up with the news that has waited long enough."""
        for network_id in [*self._heard_of]:
            if self._has_rested(network_id):
                try:
                    self._catch_up(network_id)
                except AnynodeError as error:
                    log.warning("news of %s could not be followed: %s", network_id, error)

    def _has_rested(self, network_id: str) -> bool:
        since_s = self._clock.monotonic() - self._asked_at[network_id]
        return since_s >= self._rests_s[network_id]

    def _catch_up(self, network_id: str) -> None:
        """Bring the firewall to the revision that was heard of, or a later one."""
        with self._lock(network_id):
            with self._guard:
                revision = self._heard_of.pop(network_id, -1)
            known, reached = self._policies.get(network_id), self._reach.revision(network_id)
            is_there = known is not None and known.revision >= revision
            if not is_there or (reached is not None and reached < revision):
                self.refresh(network_id)

    def repeat_reach(self, network_id: str) -> None:
        """Tell a network's plugin once more where the ports on other nodes are."""
        with self._lock(network_id):
            self._reach.repeat(network_id)

    def refresh_silent(self, silence_s: float) -> None:
        """Ask for the networks of which nothing was heard for that long."""
        since = self._clock.monotonic() - silence_s
        for network_id in self.watched():
            if self._asked_at[network_id] >= since:
                continue
            try:
                self.refresh(network_id)
            except NotFound as error:
                self._asked_at[network_id] = self._clock.monotonic()
                # A launch that ended before its rules were asked for leaves a network behind.
                level = logging.WARNING if network_id in self._policies else logging.DEBUG
                log.log(level, "policy of %s is not known: %s", network_id, error)
            except AnynodeError as error:
                log.warning("policy of %s could not be brought up to date: %s", network_id, error)

    def _sync(self, policy: NetworkPolicy) -> None:
        self._firewall.sync(policy)
        self._policies[policy.network.network_id] = policy

    def _update(self, known: NetworkPolicy, delta: PolicyDelta) -> None:
        delta = without_unused_groups(known, delta)
        wanted = apply_delta(known, delta)
        try:
            self._firewall.update(delta)
        except Stale:
            log.info(
                "rules of %s were not at revision %d", delta.network.network_id, known.revision
            )
            self._firewall.sync(wanted)
        self._policies[delta.network.network_id] = wanted

    def guard(self, network_id: str, port_id: str) -> int:
        """Make sure that a port's rules are in force, read back; return the revision.

        :raises Conflict: the network role does not know the port here, or the rules are not there.
        """
        with self._lock(network_id):
            if not (self._is_fresh(network_id) and self._has(network_id, port_id)):
                self.refresh(network_id)
            if not self._has(network_id, port_id):
                self.refresh(network_id, is_whole=True)
            policy = self._policies[network_id]
            port = next((port for port in policy.ports if port.port_id == port_id), None)
            if port is None:
                raise Conflict(f"The policy of {network_id} has no port {port_id} on this node.")
            state = self._firewall.state()
            is_there = state.revisions.get(network_id) == policy.revision and port.tap in state.taps
            if not (state.is_guarded and is_there):
                self._firewall.guard()
                self._sync(policy)
                raise Conflict(f"The rules of {port_id} were not in force when read back.")
            return policy.revision

    def _is_fresh(self, network_id: str) -> bool:
        """Say whether the policy is from a moment ago: news of it brought it here just before."""
        since = self._clock.monotonic() - FRESH_S
        return self._asked_at.get(network_id, float("-inf")) > since

    def is_guarded(self, network_id: str, port_id: str) -> bool:
        """Say whether a port's rules were put in force."""
        return self._has(network_id, port_id)

    def _has(self, network_id: str, port_id: str) -> bool:
        policy = self._policies.get(network_id)
        return policy is not None and any(port.port_id == port_id for port in policy.ports)

    def owner(self, network_id: str, address: str) -> str | None:
        """Ask whose an address is on this node; return the port, ``None`` when it is nobody's.

        :raises Unavailable: the network role does not answer.
        """
        with self._lock(network_id):
            self.refresh(network_id)
            policy = self._policies.get(network_id)
        ports = policy.ports if policy else ()
        return next((port.port_id for port in ports if address in port.addresses), None)

    def drop(self, port_id: str) -> None:
        """Remove a port's rules, in whatever network it is. No error when there are none."""
        for network_id in self.watched():
            self._drop(network_id, port_id)

    def _drop(self, network_id: str, port_id: str) -> None:
        with self._lock(network_id):
            known = self._policies.get(network_id)
            if known is None or not self._has(network_id, port_id):
                return
            delta = PolicyDelta(
                network=known.network,
                from_revision=known.revision,
                to_revision=known.revision,
                removed_port_ids=(port_id,),
            )
            self._update(known, delta)

    def repair(self) -> None:
        """Put everything in force again where the firewall has lost it."""
        state = self._firewall.state()
        if not state.is_guarded:
            log.warning("the firewall's guard was gone; it is put back")
            self._firewall.guard()
        for network_id in self.watched():
            try:
                self._repair(network_id, state)
            except AnynodeError as error:
                log.warning("rules of %s could not be put back: %s", network_id, error)

    def _repair(self, network_id: str, state: FirewallState) -> None:
        with self._lock(network_id):
            policy = self._policies.get(network_id)
            if policy is None:
                return
            is_whole = {port.tap for port in policy.ports} <= set(state.taps)
            if state.revisions.get(network_id) != policy.revision or not is_whole:
                log.warning("rules of %s were lost; they are put back", network_id)
                self._sync(policy)
