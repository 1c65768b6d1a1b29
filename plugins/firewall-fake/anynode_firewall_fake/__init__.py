"""Firewall plugin ``fake``: keeps policies in memory and judges packets with the pure model."""

from __future__ import annotations

import os
import threading
from pathlib import Path
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
    survives: Annotated[
        bool,
        msgspec.Meta(description="keep the policies in a file, so that they outlive the process"),
    ] = False


class FakeRules(msgspec.Struct, kw_only=True):
    """What is in force, as a kernel would have it."""

    is_guarded: bool = False
    policies: dict[str, NetworkPolicy] = {}


def create(settings: Settings, context: PluginContext) -> object:
    """Return a firewall of its own for each node, with the rules of before where they survive."""
    path = context.state_dir / "rules.json" if settings.survives else None
    return FakeFirewall(settings, path)


class FakeFirewall:
    """A firewall in memory. What it holds outlives the object only in the file ``path``."""

    def __init__(self, settings: Settings | None = None, path: Path | None = None) -> None:
        self._settings = settings or Settings()
        self._path = path
        self._rules = FakeRules()
        self._lock = threading.Lock()
        if path and path.exists():
            self._rules = msgspec.json.decode(path.read_bytes(), type=FakeRules)

    @property
    def is_in_memory(self) -> bool:
        """Whether no other process can see the rules."""
        return self._path is None

    @hookimpl
    def firewall_guard(self) -> None:
        """Note that the guard is wanted."""
        with self._lock:
            if not self._rules.is_guarded:
                self._rules.is_guarded = True
                self._save()

    @hookimpl
    def firewall_sync(self, policy: NetworkPolicy) -> None:
        """Keep the policy."""
        self._refuse(policy.network.network_id)
        with self._lock:
            self._rules.is_guarded = True
            self._rules.policies[policy.network.network_id] = policy
            self._save()

    @hookimpl
    def firewall_update(self, delta: PolicyDelta) -> None:
        """Keep the policy with the difference applied."""
        net = delta.network.network_id
        self._refuse(net)
        with self._lock:
            if net not in self._rules.policies:
                raise Stale(f"Network {net} has no rules here.")
            self._rules.policies[net] = apply_delta(self._rules.policies[net], delta)
            self._save()

    @hookimpl
    def firewall_forget(self, network_id: str) -> None:
        """Forget the policy."""
        with self._lock:
            if self._rules.policies.pop(network_id, None):
                self._save()

    @hookimpl
    def firewall_state(self) -> FirewallState:
        """Return what is kept."""
        with self._lock:
            policies = list(self._rules.policies.values())
            is_guarded = self._rules.is_guarded
        return FirewallState(
            is_guarded=is_guarded,
            revisions={policy.network.network_id: policy.revision for policy in policies},
            taps=tuple(sorted(port.tap for policy in policies for port in policy.ports)),
        )

    @hookimpl
    def firewall_withdraw(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rules = FakeRules()
            self._save()

    def verdict(self, packet: Packet) -> Verdict:
        """Return what becomes of a packet on this node."""
        with self._lock:
            policies = list(self._rules.policies.values())
        return verdict(policies, packet)

    def _refuse(self, network_id: str) -> None:
        if network_id in self._settings.refused_networks:
            raise CommandFailed(f"The fake firewall was told to refuse network {network_id}.")

    def _save(self) -> None:
        if self._path:
            new = self._path.with_name(f".{self._path.name}.new")
            new.write_bytes(msgspec.json.encode(self._rules))
            os.replace(new, self._path)
