"""How commands reach a node: its settings, its store, its secrets, and its EC2 endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from appliance.config import Config
    from appliance.ec2_client import Ec2Client
    from appliance.seal import Seal
    from appliance.store import Store, Transaction

T = TypeVar("T")

ENV_NAME = "anynode.env"
OPERATOR = "operator"
"""How the audit log tells who used the command line from a user of the same name."""

_SQLITE = "sqlite:///"
SETUP_HINT = "Run `make run` in a checkout, or `anynode run` on a node that is set up."


@dataclass
class Access:
    """What the global options say; everything else is found when a command first asks for it."""

    config_option: str | None = None
    is_debugging: bool = False

    @cached_property
    def config_path(self) -> Path | None:
        """The configuration file; ``None`` where the defaults hold.

        :raises ConfigError: a file was named and is not there.
        """
        from appliance.config import find_config

        return find_config(self.config_option)

    @cached_property
    def lone_config(self) -> Config:
        """The settings of the file alone, without what a cluster has decided.

        :raises ConfigError: the file cannot be read or has a bad setting.
        """
        from appliance.config import load_config

        return load_config(self.config_path)

    @cached_property
    def config(self) -> Config:
        """The settings, in a cluster with what that has decided over them.

        :raises ConfigError: the file cannot be read or has a bad setting.
        """
        from appliance.cluster.settings import overlay

        return overlay(self.lone_config)

    @property
    def folder(self) -> Path:
        """The folder of the configuration file, where the env file is, too; else ``var``."""
        return self.config_path.parent if self.config_path else Path("var")

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the store of the node.

        :raises ConfigError: no node was set up here, or this user may not open it.
        """
        from appliance.store import Store
        from appliance.world import World

        self._check_store()
        store = Store(self.config.store_url, World())
        try:
            yield store
        finally:
            store.close()

    def _check_store(self) -> None:
        from appliance.cluster.settings import is_member
        from appliance.errors import ConfigError

        if not self.config.store.url and is_member(self.config):
            raise ConfigError(
                "This node does not reach the store of its cluster.",
                hint="Run the command on a node that does: `anynode status` lists the nodes there.",
            )
        url = self.config.store_url
        if not url.startswith(_SQLITE):
            return
        path = Path(url.removeprefix(_SQLITE))
        try:
            is_there = path.exists()
        except PermissionError:
            is_there = True
        if not is_there:
            raise ConfigError(
                f"No node has been set up here: there is no store {path}.", hint=SETUP_HINT
            )
        if not os.access(path, os.R_OK | os.W_OK):
            raise ConfigError(
                f"This user may not open the store {path}.", hint="Run the command as root."
            )

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Read from the store on one consistent view."""
        with self.store() as store:
            return store.read(work)

    def change(
        self,
        action: str,
        subject: str | Callable[[T], str],
        work: Callable[[Transaction], T],
    ) -> T:
        """Change the store in one transaction, and write down there who did.

        :param subject: what is changed; a function says it from the answer.
        """
        from appliance.store import audit

        def deed(tx: Transaction) -> T:
            answer = work(tx)
            changed = subject if isinstance(subject, str) else subject(answer)
            audit.record_command(tx, operator_name(), action, changed)
            return answer

        with self.store() as store:
            return store.transaction(deed)

    def seal(self) -> Seal:
        """Return what seals secret keys on this node.

        :raises ConfigError: the key file cannot be used.
        """
        from appliance import seal

        self._check_store()
        return seal.load(seal.key_path(self.config.state_dir))

    def ec2(self) -> Ec2Client:
        """Return a client of the EC2 API, with the keys of the environment or of the env file.

        :raises ConfigError: there are none.
        """
        from appliance.ec2_client import Ec2Client, find_credentials

        return Ec2Client(find_credentials(self.config, self.folder / ENV_NAME))


def operator_name() -> str:
    """Return who runs the command: the user of the process, behind sudo the one who called it."""
    import pwd

    uid = os.getuid()
    name = os.environ.get("SUDO_USER", "") if uid == 0 else ""
    try:
        return f"{OPERATOR} {name or pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"{OPERATOR} {uid}"


pass_access = click.make_pass_decorator(Access, ensure=True)
