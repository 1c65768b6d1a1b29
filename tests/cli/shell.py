"""The command line on a node's folder, as a user runs it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from appliance import node_process
from appliance.cli import main
from appliance.config import Config, load_config
from appliance.node import Node
from appliance.store import Store
from appliance.world import World


@dataclass(frozen=True)
class Shell:
    """Runs commands on one folder, as a user would, with an environment of its own."""

    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / "anynode.toml"

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    def try_run(self, *words: str, environment: dict[str, str] | None = None) -> Result:
        """Run a command, whatever it ends with."""
        hidden = {name: None for name in os.environ if name.startswith(("AWS_", "ANYNODE_"))}
        return CliRunner().invoke(
            main, ["--config", str(self.folder), *words], env={**hidden, **(environment or {})}
        )

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command that must end with a status, and return what it printed."""
        result = self.try_run(*words)
        assert result.exit_code == status, result.output
        return result.stdout

    def fail(self, *words: str, status: int = 1) -> str:
        """Run a command that must fail, and return what it said."""
        result = self.try_run(*words)
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result.stderr

    def json(self, *words: str, status: int = 0) -> Any:
        """Run a command with ``--json`` and return what it printed."""
        return json.loads(self.run(*words, "--json", status=status))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the node in this process."""
        node = Node(self.config)
        process = node_process.this_process(self.config, self.config_path, None)
        with node_process.recorded(process, self.config.run_dir) as write:
            try:
                node.start()
                write(node_process.up(process))
                yield
            finally:
                node.stop()

    def open_store(self) -> Store:
        return Store(self.config.store_url, World())

    def give_key(self, project: str = "demo", user: str = "admin") -> None:
        """Make project, user and access key, and keep the key in the env file."""
        self.run("project", "create", project)
        self.run("user", "create", user)
        self.run("project", "add-user", project, user, "--level", "admin")
        (self.folder / "anynode.env").write_text(self.run("key", "create", user, project, "--env"))

    def import_image(self, name: str = "blank", size_bytes: int = 1 << 20) -> str:
        """Import a small disk for all and return its id."""
        path = self.folder / f"{name}.img"
        path.write_bytes(name.encode().ljust(size_bytes, b"\0"))
        made = self.json(
            "image", "import", str(path), "--name", name, "--format", "raw", "--public"
        )
        return str(made["image_id"])
