"""Finding and loading plugins: by group and short name, one at a time, only what is named."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import msgspec
import pluggy

from appliance.errors import AnynodeError, ConfigError, PluginError
from appliance.hookspecs import API_VERSIONS, GROUPS, NoSettings, PluginContext


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A plugin that a distribution offers; nothing of it is imported yet."""

    group: str
    name: str
    module: str
    distribution: str
    version: str

    def load(self) -> ModuleType:
        """Import the plugin's module.

        :raises PluginError: the import fails, or the module lacks ``create`` or ``api_versions``,
            or shares no API version with this release.
        """
        entry = importlib.metadata.EntryPoint(name=self.name, value=self.module, group=self.group)
        try:
            module = entry.load()
        except Exception as error:
            raise PluginError(
                f"Could not import plugin {self.name!r} of {self.group} from {self.distribution}.",
                hint="Run its own tests, or reinstall the distribution.",
            ) from error
        for attribute in ("create", "api_versions"):
            if not hasattr(module, attribute):
                raise PluginError(
                    f"Plugin {self.name!r} of {self.group} has no {attribute!r}.",
                    hint="The page on plugins says what a plugin module must define.",
                )
        check_api_versions(self.name, module.api_versions)
        return module  # type: ignore[no-any-return]


def check_api_versions(name: str, offered: object) -> None:
    """Raise PluginError, with both sets, unless plugin and host share an API version."""
    if not isinstance(offered, Set) or not all(isinstance(item, int) for item in offered):
        raise PluginError(
            f"The api_versions of plugin {name!r} are {offered!r}, not a set of integers."
        )
    if not offered & API_VERSIONS:
        raise PluginError(
            f"Plugin {name!r} speaks API versions {sorted(offered)}, "
            f"this release speaks {sorted(API_VERSIONS)}.",
            hint="Install a release of the plugin that shares one.",
        )


def offered(group: str) -> tuple[Installed, ...]:
    """Return all plugins of one group by name, those included that are offered twice.

    :raises PluginError: nobody knows the group.
    """
    if group not in GROUPS:
        raise PluginError(f"There is no plugin group {group!r}; there are {', '.join(GROUPS)}.")
    found = {
        Installed(
            group=group,
            name=entry.name,
            module=entry.value,
            distribution=entry.dist.name if entry.dist else "?",
            version=entry.dist.version if entry.dist else "?",
        )
        for entry in _entry_points(tuple((path, _changed_at(path)) for path in sys.path), group)
    }
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


@lru_cache(maxsize=len(GROUPS))
def _entry_points(
    folders: tuple[tuple[str, int], ...], group: str
) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Return what the distributions in some folders offer, as the folders are now.

    A search reads a file of every distribution, and a start would search some forty times.
    """
    return tuple(importlib.metadata.entry_points(group=group))


def _changed_at(path: str) -> int:
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


def installed(group: str) -> dict[str, Installed]:
    """Return the plugins of one group by short name.

    :raises PluginError: two distributions offer the same name, or nobody knows the group.
    """
    return {plugin.name: find(group, plugin.name) for plugin in offered(group)}


def find(group: str, name: str) -> Installed:
    """Return the named plugin.

    :raises PluginError: it is not installed, and the message lists those that are; or it is
        offered more than once, and the message says by whom.
    """
    choices = offered(group)
    named = [plugin for plugin in choices if plugin.name == name]
    if not named:
        names = sorted({plugin.name for plugin in choices})
        raise PluginError(
            f"No plugin {name!r} in {group}; installed: {', '.join(names) or 'none'}.",
            hint="Correct the setting, or install the distribution that brings it.",
        )
    if len(named) > 1:
        by = " and ".join(f"{plugin.distribution} ({plugin.module})" for plugin in named)
        raise PluginError(
            f"Plugin {name!r} in {group} is offered by {by}.",
            hint="Remove all but one of these distributions.",
        )
    return named[0]


def spans_nodes(network_type: str) -> bool:
    """Say whether networks of a type are the same on every node.

    :raises PluginError: its plugin is missing or does not load.
    """
    module = find("appliance.network", network_type).load()
    return bool(getattr(module, "spans_nodes", False))


def overhead_bytes(network_type: str) -> int:
    """Return by how many bytes packets of a network of a type grow on their way between nodes.

    :raises PluginError: its plugin is missing or does not load.
    """
    module = find("appliance.network", network_type).load()
    return int(getattr(module, "overhead_bytes", 0))


def settings_names(module: ModuleType) -> list[str]:
    """Return the names of a plugin's settings."""
    struct = getattr(module, "Settings", NoSettings)
    return [field.encode_name for field in msgspec.structs.fields(struct)]


def read_settings(module: ModuleType, name: str, raw: Mapping[str, Any]) -> Any:
    """Return the plugin's own settings, checked against its ``Settings``.

    :raises ConfigError: an unknown setting, with those that there are, or a value of a wrong
        type, with the place.
    :raises PluginError: its ``Settings`` is no struct.
    """
    struct = getattr(module, "Settings", NoSettings)
    if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)):
        raise PluginError(f"Settings of plugin {name!r} is no msgspec.Struct.")
    known = settings_names(module)
    # Not left to the struct: one that forgot forbid_unknown_fields would let a typing error pass.
    unknown = [key for key in raw if key not in known]
    if unknown:
        raise ConfigError(
            f"Plugin {name!r} has no setting {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(known) or 'none'}."
        )
    try:
        return msgspec.convert(dict(raw), struct)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Bad setting of plugin {name!r}: {error}.") from error


def relay(group: str, name: str, member: object) -> pluggy.PluginManager:
    """Return a plugin manager for one group with one member.

    :raises PluginError: the member fills no hook, has one that the group does not know (a
        misspelt name), or one that pluggy would not call as the contract says.
    """
    if member is None or isinstance(member, type):
        raise PluginError(f"create() of plugin {name!r} of {group} returned {member}, no object.")
    manager = pluggy.PluginManager("appliance")
    manager.add_hookspecs(GROUPS[group])
    try:
        manager.register(member, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise PluginError(f"Plugin {name!r} breaks the contract of {group}: {problem}.") from error
    filled = [
        impl for caller in manager.get_hookcallers(member) or () for impl in caller.get_hookimpls()
    ]
    if not filled:
        raise PluginError(
            f"Plugin {name!r} of {group} fills no hook.",
            hint="Mark its methods with appliance.hookspecs.hookimpl.",
        )
    for impl in filled:
        shape = _shape_problem(impl)
        if shape:
            raise PluginError(
                f"Plugin {name!r} breaks the contract of {group}: {impl.function.__name__} {shape}."
            )
    return manager


def _shape_problem(impl: pluggy.HookImpl) -> str | None:
    if impl.wrapper or impl.hookwrapper:
        return "is a wrapper, and a hook has one answer"
    if impl.kwargnames:
        return f"gives a default to {', '.join(impl.kwargnames)}, which not every pluggy passes"
    return None


def create(group: str, name: str, raw: Mapping[str, Any], context: PluginContext) -> object:
    """Load the named plugin and return the object that fills its hooks.

    :raises PluginError: it is missing, does not load, or fails while it is made.
    :raises ConfigError: its settings are wrong.
    """
    module = find(group, name).load()
    settings = read_settings(module, name, raw)
    try:
        return module.create(settings, context)
    except AnynodeError:
        raise
    except Exception as error:
        raise PluginError(
            f"Could not make plugin {name!r} of {group}.",
            hint="This is a bug of the plugin: tell its authors.",
        ) from error


def withdraw(group: str, name: str, raw: Mapping[str, Any], context: PluginContext) -> None:
    """Let the named plugin end what it has started on this machine; nothing where it need not.

    :raises PluginError: it is missing, does not load, or fails.
    :raises ConfigError: its settings are wrong.
    """
    module = find(group, name).load()
    if not hasattr(module, "withdraw"):
        return
    settings = read_settings(module, name, raw)
    try:
        module.withdraw(settings, context)
    except AnynodeError:
        raise
    except Exception as error:
        raise PluginError(
            f"Could not withdraw plugin {name!r} of {group}.",
            hint="This is a bug of the plugin: tell its authors.",
        ) from error
