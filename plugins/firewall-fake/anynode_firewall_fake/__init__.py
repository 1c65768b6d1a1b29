"""Firewall plugin ``fake``: keeps policies in memory and judges packets with the pure model."""

from __future__ import annotations

import threading
from typing import Annotated

import msgspec

from appliance.errors import CommandFailed, Stale
from appliance.firewall import Packet, Verdict, apply_delta, verdict
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import FirewallState, NetworkPolicy, PolicyDelta

api_versions = frozenset({1})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the fake."""

    refused_networks: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="Ids of networks whose changes fail, to rehearse a failure."),
    ] = ()


def create(settings: Settings, context: PluginContext) -> object:
    """Return a firewall of its own for each node."""
    return FakeFirewall(settings)


class FakeFirewall:
    """A firewall in memory. What it holds outlives nothing but the object."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._policies: dict[str, NetworkPolicy] = {}
        self._is_guarded = False
        self._lock = threading.Lock()

    @hookimpl
    def firewall_guard(self) -> None:
        """Note that the guard is wanted."""
        self._is_guarded = True

    @hookimpl
    def firewall_sync(self, policy: NetworkPolicy) -> None:
        """Keep the policy."""
        self._refuse(policy.network.network_id)
        with self._lock:
            self._is_guarded = True
            self._policies[policy.network.network_id] = policy

    @hookimpl
    def firewall_update(self, delta: PolicyDelta) -> None:
        """Keep the policy with the difference applied."""
        net = delta.network.network_id
        self._refuse(net)
        with self._lock:
            if net not in self._policies:
                raise Stale(f"Network {net} has no rules here.")
            self._policies[net] = apply_delta(self._policies[net], delta)

    @hookimpl
    def firewall_forget(self, network_id: str) -> None:
        """Forget the policy."""
        with self._lock:
            self._policies.pop(network_id, None)

    @hookimpl
    def firewall_state(self) -> FirewallState:
        """Return what is kept."""
        with self._lock:
            policies = list(self._policies.values())
        return FirewallState(
            is_guarded=self._is_guarded,
            revisions={policy.network.network_id: policy.revision for policy in policies},
            taps=tuple(sorted(port.tap for policy in policies for port in policy.ports)),
        )

    @hookimpl
    def firewall_withdraw(self) -> None:
        """Forget everything."""
        with self._lock:
            self._policies.clear()
            self._is_guarded = False

    def verdict(self, packet: Packet) -> Verdict:
        """Return what becomes of a packet on this node."""
        with self._lock:
            policies = list(self._policies.values())
        return verdict(policies, packet)

    def _refuse(self, network_id: str) -> None:
        if network_id in self._settings.refused_networks:
            raise CommandFailed(f"The fake firewall was told to refuse network {network_id}.")
