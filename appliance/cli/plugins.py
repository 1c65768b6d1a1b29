"""``anynode plugins``: what is installed, what is broken, what is used."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say

if TYPE_CHECKING:
    from appliance.config import Config


@dataclass(frozen=True, kw_only=True)
class Line:
    """An installed plugin. ``problem`` says why it cannot be used; empty when it can."""

    group: str
    name: str
    version: str
    distribution: str
    is_used: bool
    settings: tuple[str, ...]
    problem: str


@click.group()
def plugins() -> None:
    """What is installed, what is broken, what is used."""


@plugins.command("list", short_help="List the plugins of all groups, or of one.")
@click.argument("group", required=False)
@json_option
@pass_access
@click.pass_context
def list_all(context: click.Context, access: Access, group: str | None, as_json: bool) -> None:
    """List the plugins of all groups, or of one; exit status 1 when one in use is broken."""
    from appliance.errors import NotFound
    from appliance.hookspecs import GROUPS

    chosen = [name for name in GROUPS if group in (None, name, name.removeprefix("appliance."))]
    if not chosen:
        names = ", ".join(name.removeprefix("appliance.") for name in GROUPS)
        raise NotFound(f"There is no plugin group {group!r}.", hint=f"There are {names}.")
    lines = [line for name in chosen for line in lines_of(name, access.config)]
    if as_json:
        print_json(lines)
    else:
        _show(lines)
    context.exit(1 if any(line.is_used and line.problem for line in lines) else 0)


def _show(lines: list[Line]) -> None:
    rows = [
        (
            "*" if line.is_used else "",
            line.group,
            line.name,
            line.version,
            line.distribution,
            " ".join(line.settings),
            line.problem,
        )
        for line in lines
    ]
    print_table(
        ("", "group", "name", "version", "distribution", "settings", "problem"),
        rows,
        "No plugins are installed.",
    )
    say("")
    say("* is used by this node's settings.")


def lines_of(group: str, config: Config) -> list[Line]:
    """Return the plugins of a group, installed ones and those that are used and missing."""
    from appliance.plugins import offered

    used = {name for one, name in in_use(config) if one == group}
    short = group.removeprefix("appliance.")
    found = offered(group)
    lines = []
    for plugin in found:
        settings, problem = _look_at(group, plugin.name)
        lines.append(
            Line(
                group=short,
                name=plugin.name,
                version=plugin.version,
                distribution=plugin.distribution,
                is_used=plugin.name in used,
                settings=settings,
                problem=problem,
            )
        )
    missing = sorted(used - {plugin.name for plugin in found})
    return lines + [
        Line(
            group=short,
            name=name,
            version="",
            distribution="",
            is_used=True,
            settings=(),
            problem="It is not installed.",
        )
        for name in missing
    ]


def _look_at(group: str, name: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a plugin's settings, and why it cannot be used."""
    import msgspec

    from appliance.errors import AnynodeError, cause_chain
    from appliance.plugins import find

    try:
        struct = settings_struct(find(group, name).load())
    except AnynodeError as error:
        return (), " ".join(cause_chain(error))
    return tuple(field.encode_name for field in msgspec.structs.fields(struct)), ""


def settings_struct(module: ModuleType) -> type[Any]:
    """Return the struct of a plugin's settings."""
    from appliance.hookspecs import NoSettings

    struct: type[Any] = getattr(module, "Settings", NoSettings)
    return struct


def in_use(config: Config) -> list[tuple[str, str]]:
    """Return group and name of all plugins that the settings name, directly or through another."""
    named = [
        *(("role", name) for name in config.node.roles),
        ("scheduler", config.scheduler.driver),
        ("network", _network_type(config)),
        ("firewall", config.firewall.driver),
        ("compute", config.compute.driver),
        *(("injection", name) for name in config.compute.injection),
        *(("auth", name) for name in config.api.auth),
        *(("observer", name) for name in config.observers),
    ]
    if config.scheduler.driver == "filter":
        settings = _filter_settings(config)
        named += [("filter", name) for name in getattr(settings, "filters", ())]
        named += [("weight", name) for name in getattr(settings, "weights", ())]
    return [(f"appliance.{group}", name) for group, name in named]


def _network_type(config: Config) -> str:
    from appliance.store.setup import CLUSTER_TYPE, LONE_TYPE

    is_member = (config.state_dir / "cluster").is_dir()
    return config.network.type or (CLUSTER_TYPE if is_member else LONE_TYPE)


def _filter_settings(config: Config) -> Any:
    from appliance.errors import AnynodeError
    from appliance.plugins import find, read_settings

    group, name = "appliance.scheduler", "filter"
    try:
        module = find(group, name).load()
        return read_settings(module, name, config.plugin_settings(group, name))
    except AnynodeError:
        return None  # the list shows what is wrong with it
