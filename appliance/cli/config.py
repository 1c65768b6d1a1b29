"""``anynode config``: every setting with the value in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option, print_json, print_table, say


@dataclass(frozen=True, kw_only=True)
class Line:
    """A setting with its value in force. ``is_set`` says that it differs from the default."""

    name: str
    type: str
    value: Any
    default: Any
    is_set: bool
    help: str


@click.group(
    "config", invoke_without_command=True, short_help="List all settings and their values."
)
@json_option
@click.option("--changed", is_flag=True, help="Only settings that differ from their defaults.")
@pass_access
@click.pass_context
def config(context: click.Context, access: Access, as_json: bool, changed: bool) -> None:
    """List all settings: value in force, default, unit and meaning; those of plugins, too.

    A star marks what differs from the default.
    """
    if context.invoked_subcommand:
        return
    lines = [line for line in all_lines(access) if line.is_set or not changed]
    if as_json:
        print_json(lines)
        return
    say(f"Settings of {access.config_path or 'no file: the defaults hold'}")
    rows = [
        (
            "*" if line.is_set else "",
            line.name,
            value_words(line.value),
            value_words(line.default),
            line.help,
        )
        for line in lines
    ]
    print_table(("", "setting", "value", "default", "meaning"), rows, "None differs.")


@config.command("show", short_help="Show one setting, or all of a section.")
@click.argument("name")
@json_option
@pass_access
def show(access: Access, name: str, as_json: bool) -> None:
    """Show one setting, e.g. api.port, or all that begin with a name, e.g. api."""
    from appliance.errors import NotFound

    lines = [line for line in all_lines(access) if f"{line.name}.".startswith(f"{name}.")]
    if not lines:
        raise NotFound(f"There is no setting {name!r}.", hint="`anynode config` lists them.")
    if as_json:
        print_json(lines)
        return
    for number, line in enumerate(lines):
        if number:
            say("")
        say(f"{line.name} = {value_words(line.value)}")
        say(f"  {line.help}")
        say(f"  {line.type}, default {value_words(line.default)}")


def all_lines(access: Access) -> list[Line]:
    """Return all settings of the node, then those of the plugins that it uses."""
    from appliance.config import settings_of, without_password

    lines = []
    for setting in settings_of(type(access.config)):
        value: Any = access.config
        for part in setting.name.split("."):
            value = getattr(value, part)
        if setting.name.endswith(".url"):
            value = without_password(value)
        lines.append(
            Line(
                name=setting.name,
                type=setting.type,
                value=value,
                default=setting.default,
                is_set=value != setting.default,
                help=setting.help,
            )
        )
    return lines + _plugin_lines(access)


def _plugin_lines(access: Access) -> list[Line]:
    import msgspec

    from appliance.cli.plugins import in_use, settings_struct
    from appliance.config import settings_of
    from appliance.errors import AnynodeError
    from appliance.plugins import find, read_settings

    lines = []
    for group, name in in_use(access.config):
        try:
            module = find(group, name).load()
            values = read_settings(module, name, access.config.plugin_settings(group, name))
            struct = settings_struct(module)
        except AnynodeError:
            continue  # `anynode plugins list` says what is wrong with it
        for setting in settings_of(struct):
            field = next(f for f in msgspec.structs.fields(struct) if f.name == setting.name)
            value = getattr(values, setting.name)
            default = (
                field.default_factory()
                if field.default_factory is not msgspec.NODEFAULT
                else field.default
            )
            lines.append(
                Line(
                    name=f"plugins.{group.removeprefix('appliance.')}.{name}.{setting.name}",
                    type=setting.type,
                    value=value,
                    default=None if default is msgspec.NODEFAULT else default,
                    is_set=value != default,
                    help=setting.help,
                )
            )
    return lines


def value_words(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_words(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {value_words(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return f'"{value}"'
    return "" if value is None else str(value)
