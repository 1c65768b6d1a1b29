"""A hypervisor in memory: the whole contract, no processes, for tests and simulations."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from anynode_compute_fake.machine import FakeCompute
from appliance.hookspecs import PluginContext

api_versions = frozenset({1})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of this plugin."""

    vcpus: Annotated[int, Meta(description="vcpus that the node pretends to have", gt=0)] = 64
    memory_mib: Annotated[
        int, Meta(description="memory that the node pretends to have, MiB", gt=0)
    ] = 262_144
    disk_gib: Annotated[int, Meta(description="disk that the node pretends to have, GiB", gt=0)] = (
        4_096
    )
    transition_s: Annotated[
        float, Meta(description="how long each change of power state takes, seconds", ge=0)
    ] = 0.0
    survives: Annotated[
        bool,
        Meta(description="keep instances in a file, so that they outlive the node's process"),
    ] = False


def create(settings: Settings, context: PluginContext) -> FakeCompute:
    """Return the hypervisor, with the instances of an earlier life where they survive."""
    return FakeCompute(
        vcpus=settings.vcpus,
        memory_mib=settings.memory_mib,
        disk_gib=settings.disk_gib,
        transition_s=settings.transition_s,
        record_path=context.state_dir / "instances.json" if settings.survives else None,
    )
