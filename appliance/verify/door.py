"""What a node tells the control nodes of its cluster when they verify it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from appliance.cluster.doors import caller, door
from appliance.config import Config
from appliance.errors import Denied
from appliance.verify import environment
from appliance.verify.node_facts import NodeFacts, gather_here, without_secrets


def answer(config: Config, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer the question of a control node with what is on this node; changes nothing."""

    def facts(environ: dict[str, Any]) -> NodeFacts:
        if not caller(environ).is_control:
            raise Denied("Only control nodes are told what is on a node.")
        return told(config)

    return door("GET", facts)(environ, start)


def told(config: Config) -> NodeFacts:
    """Return what a node tells of itself, from within its process."""
    here = gather_here(config, is_asked_inside=True)
    findings = tuple(environment.look_here(config, here))
    return msgspec.structs.replace(without_secrets(here), findings=findings)
