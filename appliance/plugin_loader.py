"""Making the plugins that a node's settings name, each with its own settings and folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.config import Config
from appliance.hooks import Filters, Weights
from appliance.hookspecs import Credentials, PluginContext
from appliance.plugins import create, find, settings_names, withdraw


@dataclass(frozen=True, kw_only=True)
class PluginLoader:
    """Makes plugins by group and short name; schedulers get it as their source of filters.

    ``settings`` returns the raw settings of a plugin by group and name; ``credentials`` go to
    plugins that authenticate and to no others.
    """

    node_name: str
    state_dir: Path
    run_dir: Path
    settings: Callable[[str, str], Mapping[str, Any]]
    credentials: Credentials | None = None
    node_address: str = ""

    def create(self, group: str, name: str) -> object:
        """Make one plugin.

        :raises PluginError: it is missing, does not load, or fails while it is made.
        :raises ConfigError: its settings are wrong.
        """
        return create(group, name, self.settings(group, name), self._context(group, name))

    def withdraw(self, group: str, name: str) -> None:
        """End what a plugin has started on this machine, if it starts anything.

        :raises PluginError: it is missing, does not load, or fails.
        :raises ConfigError: its settings are wrong.
        """
        withdraw(group, name, self.settings(group, name), self._context(group, name))

    def _context(self, group: str, name: str) -> PluginContext:
        # Looked up before a folder bears its name, which so is never more than a plugin's name.
        find(group, name)
        kind = group.removeprefix("appliance.")
        return PluginContext(
            node_name=self.node_name,
            state_dir=_own_folder(self.state_dir, f"{kind}-{name}"),
            run_dir=_own_folder(self.run_dir, f"{kind}-{name}"),
            plugins=self,
            credentials=self.credentials if kind == "auth" else None,
            node_address=self.node_address,
        )

    def create_all(self, group: str, names: Sequence[str]) -> dict[str, object]:
        """Make the named plugins of one group, in order."""
        return {name: self.create(group, name) for name in names}

    def filters(self, names: Sequence[str]) -> Filters:
        """Make the named filters, in order."""
        return Filters(self.create_all("appliance.filter", names))

    def weights(self, multipliers: Mapping[str, float]) -> Weights:
        """Make the named weights with their multipliers."""
        made = self.create_all("appliance.weight", list(multipliers))
        return Weights({name: (plugin, multipliers[name]) for name, plugin in made.items()})


def loader_of(config: Config, credentials: Credentials | None = None) -> PluginLoader:
    """Return what makes the plugins of a node with these settings."""
    return PluginLoader(
        node_name=config.node_name,
        state_dir=config.state_dir,
        run_dir=config.run_dir,
        settings=config.plugin_settings,
        credentials=credentials,
        node_address=config.cluster.address,
    )


def quiet_loader_of(config: Config) -> PluginLoader:
    """Return what makes plugins of a node that only look: their setting ``start_daemon`` is off."""

    def settings(group: str, name: str) -> Mapping[str, Any]:
        given = config.plugin_settings(group, name)
        has_daemon = "start_daemon" in settings_names(find(group, name).load())
        return {**given, "start_daemon": False} if has_daemon else given

    return replace(loader_of(config), settings=settings)


def used_names(config: Config, group: str) -> tuple[str, ...]:
    """Return the plugins of a group that have ever been made on this node's folders, by name."""
    prefix = f"{group.removeprefix('appliance.')}-"
    folders = (config.state_dir / "plugins", config.run_dir / "plugins")
    found = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return tuple(sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix)))


def _own_folder(parent: Path, name: str) -> Path:
    """Return a plugin's folder; one that is there keeps the mode that the plugin has given it.

    Commands make plugins beside a running node, whose own must not notice.
    """
    folder = parent / "plugins" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
