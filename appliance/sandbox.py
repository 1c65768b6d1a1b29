"""The sandbox: a whole node, or several, on fakes of hypervisor, network and firewall.

It is the same program as a real node, with other plugins. It needs no rights and changes nothing
on the machine but its own folder and its env file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from appliance import node_process, seal
from appliance.config import CONFIG_NAME, Config
from appliance.ec2_client import Ec2Credentials, endpoint_of, read_env_file
from appliance.env_file import path_line, write_whole
from appliance.errors import ConfigError, InputError, Unavailable
from appliance.image_import import Wanted, import_image
from appliance.node import Node
from appliance.store import Store, Transaction, identity, nodes
from appliance.store.images import MACHINE
from appliance.world import World

PROJECT, USER = "sandbox", "sandbox"
ACCOUNT = "123456789012"
MOST_NODES = 100
MARK = "ANYNODE_SANDBOX"
"""The variable of an env file that says that a sandbox wrote it."""

_IMAGE_NAME = "sandbox"
_IMAGE_BYTES = 1 << 20
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 512 << 20
_UP_S = 10.0
_POLL_S = 0.01
_NODE_ROLES = ("datapath", "compute")
_ALL_ROLES = ("api", "controller", "scheduler", "network", *_NODE_ROLES)
_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_ZONE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_PLENTY = 1_000_000
_CAPACITY = {"vcpus": 10_000, "memory_mib": 64 << 20, "disk_gib": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a sandbox shall be.

    :param port: 0 for one that is free.
    :param zones: full names, see :func:`zone_names`.
    :param transition_s: seconds that each change of an instance's power takes.
    :param types_file: instance types beside the built-in ones; ``None`` for none.
    """

    port: int
    region: str
    zones: tuple[str, ...]
    nodes: int
    account: str = ACCOUNT
    transition_s: float = 0.0
    types_file: Path | None = None


def zone_names(region: str, given: str) -> tuple[str, ...]:
    """Return the full names of zones that were given as a list with commas: ``a`` means REGION + a.

    :raises InputError: the region or a zone has no name that clients take, or is named twice.
    """
    if not _REGION.fullmatch(region):
        raise InputError(
            f"{region!r} is no name of a region.",
            hint="Regions are called like us-east-1: small letters, digits and dashes.",
        )
    words = [word.strip() for word in given.split(",")]
    names = tuple(region + word if re.fullmatch("[a-z]", word) else word for word in words)
    for name in names:
        if not _ZONE.fullmatch(name) or len(name) > 64:
            raise InputError(
                f"{name!r} is no name of an availability zone.",
                hint=f"Give letters, --zones a,b for {region}a and {region}b, or full names.",
            )
    if len(set(names)) != len(names):
        raise InputError(f"A zone is named twice in {given!r}.", hint="Name each zone once.")
    return names


def _settings(options: Options, folder: Path, survives: bool) -> dict[str, Any]:
    """Return the settings of the first node, as a configuration file has them."""
    fakes: dict[str, Any] = {"survives": survives}
    return {
        "node": {
            "name": "node-1",
            "region": options.region,
            "zone": options.zones[0],
            "roles": list(_ALL_ROLES),
            "state_dir": str(folder / "node-1"),
            "run_dir": str(folder / "node-1" / "run"),
        },
        "api": {
            "port": options.port,
            "threads": 16,
            "instance_types": str(options.types_file.absolute()) if options.types_file else "",
        },
        "network": {
            "type": "fake",
            "metadata": False,
            "cidr": "172.31.0.0/20",
            "vpc_cidr": "172.31.0.0/16",
            "address_quarantine_s": 0.0,
        },
        "firewall": {"driver": "fake"},
        "compute": {
            "driver": "fake",
            "injection": ["none"],
            "vcpu_ratio": 1.0,
            "parallel_launches": 16,
        },
        "images": {"group": "", "folder": str(folder / "images")},
        "quota": {
            "instances": _PLENTY,
            "vcpus": _PLENTY,
            "memory_mib": _PLENTY << 10,
            "security_groups": 2500,
            "rules": 1000,
            "key_pairs": 5000,
        },
        "plugins": {
            "compute": {"fake": {**fakes, **_CAPACITY, "transition_s": options.transition_s}},
            "network": {"fake": fakes},
            "firewall": {"fake": fakes},
        },
    }


def _further(settings: Mapping[str, Any], options: Options, number: int) -> dict[str, Any]:
    """Return the settings of the node of that number."""
    folder = Path(settings["node"]["state_dir"]).parent / f"node-{number}"
    node = {
        **settings["node"],
        "name": f"node-{number}",
        "zone": options.zones[(number - 1) % len(options.zones)],
        "roles": list(_NODE_ROLES),
        "state_dir": str(folder),
        "run_dir": str(folder / "run"),
    }
    return {**settings, "node": node}


def toml_of(table: Mapping[str, Any], prefix: str = "") -> str:
    """Return settings as TOML: strings, numbers, lists and sections are written as JSON's are."""
    values = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    text = f"[{prefix}]\n" + "".join(f"{line}\n" for line in lines) if lines else ""
    return text + "".join(
        toml_of(value, f"{prefix}.{name}" if prefix else name)
        for name, value in table.items()
        if isinstance(value, Mapping)
    )


class Sandbox:
    """A sandbox in this process, from :meth:`start` to :meth:`stop`.

    :param folder: where its state is; what is there already is taken up again.
    :param survives: keep the fakes' instances there, too.
    :param key: id and secret of an access key to adopt.
    :raises ConfigError: the port is taken, or the folder is in use or belongs to another account.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        *,
        survives: bool = False,
        key: tuple[str, str] | None = None,
    ) -> None:
        if not len(options.zones) <= options.nodes <= MOST_NODES:
            raise InputError(
                f"{options.nodes} nodes cannot make {len(options.zones)} zones.",
                hint=f"Each zone needs a node, and there may be {MOST_NODES}.",
            )
        check_account(options.account)
        check_port(options.port)
        self.folder = folder.absolute()
        self.zones = options.zones
        self.is_temporary = not survives
        self._options = options
        self._settings = _settings(options, self.folder, survives)
        self._node = Node(_config(self._settings), World())
        self._record = ExitStack()
        try:
            for number in range(2, options.nodes + 1):
                config = _config(_further(self._settings, options, number))
                Node(config, self._node.world, beside=self._node)
            self.image_id, self._key = self._prepare(key)
        except BaseException:
            self._node.stop()
            raise

    @property
    def config_path(self) -> Path:
        """The configuration file by which commands find the sandbox."""
        return self.folder / CONFIG_NAME

    @property
    def _config(self) -> Config:
        """The settings of the first node, with the port that it listens on."""
        config = self._node.config
        api = msgspec.structs.replace(config.api, port=self._node.port)
        return msgspec.structs.replace(config, api=api)

    @property
    def credentials(self) -> Ec2Credentials:
        """Where the API is once it has started, and a key that may do everything in its project."""
        return Ec2Credentials(
            endpoint=endpoint_of(self._config),
            region=self._options.region,
            access_key_id=self._key[0],
            secret=self._key[1],
        )

    def start(self) -> None:
        """Start, and return when the API answers and every node takes instances.

        :raises ConfigError: the port cannot be listened on.
        :raises Unavailable: the nodes did not come up in time.
        """
        self._node.start()
        settings = {**self._settings, "api": {**self._settings["api"], "port": self._node.port}}
        write_whole(self.config_path, toml_of(settings), mode=0o600)
        end = time.monotonic() + _UP_S
        while self._node.store.read(_count_up) < self._options.nodes:
            if time.monotonic() > end:
                raise Unavailable(f"The sandbox's nodes were not up within {_UP_S:g} s.")
            time.sleep(_POLL_S)
        process = node_process.this_process(self._config, self.config_path, None)
        self._record.enter_context(
            node_process.recorded(node_process.up(process), self._node.config.run_dir)
        )

    def stop(self) -> None:
        """Stop; what is in the folder stays. Safe to repeat."""
        self._record.close()
        self._node.stop()

    def _prepare(self, key: tuple[str, str] | None) -> tuple[str, tuple[str, str]]:
        """Have project, user, access key and image; return the last two."""
        store, config = self._node.store, self._node.config
        keys = seal.load(seal.key_path(config.state_dir))
        ceilings = msgspec.structs.asdict(config.quota)
        account = self._options.account
        store.transaction(lambda tx: _ensure_project(tx, account, ceilings))
        used = key or _known_key(store, keys)
        if key:
            store.transaction(lambda tx: identity.adopt_access_key(tx, keys, USER, PROJECT, *key))
        if used is None:
            used = store.transaction(lambda tx: identity.create_access_key(tx, keys, USER, PROJECT))
        return _ensure_image(store, config, self.folder), used


def _config(settings: Mapping[str, Any]) -> Config:
    try:
        return msgspec.convert(settings, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"The sandbox cannot be made so: {error}.", hint="`anynode sandbox --help` explains."
        ) from error


def _count_up(tx: Transaction) -> int:
    return sum(view.is_up for view in nodes.views(tx))


def _ensure_project(tx: Transaction, account: str, ceilings: Mapping[str, int]) -> None:
    known = {one.name: one.project_id for one in identity.list_projects(tx)}
    if known.get(PROJECT, account) != account:
        raise ConfigError(
            f"The state belongs to account {known[PROJECT]}, not to {account}.",
            hint="Use that account, or another --state folder.",
        )
    if PROJECT in known:
        return
    identity.create_project(tx, PROJECT, ceilings, account)
    identity.create_user(tx, USER)
    identity.join_project(tx, USER, PROJECT, "admin")


def _known_key(store: Store, keys: seal.Seal) -> tuple[str, str] | None:
    """Return an access key that an earlier sandbox has made here and that still works."""
    credentials = identity.StoreCredentials(store, keys)
    for one in store.read(identity.list_access_keys):
        found = credentials.find(one.access_key_id) if one.user_name == USER else None
        if found:
            return found.access_key_id, found.secret
    return None


def _ensure_image(store: Store, config: Config, folder: Path) -> str:
    """Register a public image that instances can boot as far as the fake boots anything."""
    wanted = Wanted(
        kind=MACHINE,
        name=_IMAGE_NAME,
        format="raw",
        description="Boots nothing: instances of a sandbox only seem to run",
        is_public=True,
    )
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".raw") as file:
        file.write(b"Nothing to see here.\n".ljust(_IMAGE_BYTES, b"\0"))
        file.flush()
        return import_image(store, config, Path(file.name), wanted, PROJECT).image.image_id


def _in_memory() -> Path | None:
    """Return a folder whose files are in memory, where nothing waits for a disk.

    ``None`` where somebody has said where temporary files go, or where it is small.
    """
    try:
        has_room = shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES and os.access(_MEMORY, os.W_OK)
    except OSError:
        has_room = False
    return _MEMORY if has_room and not os.environ.get("TMPDIR") else None


@contextmanager
def folder_of(state: Path | None) -> Iterator[Path]:
    """Give the folder of a sandbox's state: the one that is named, or one that goes at the end.

    :raises ConfigError: it cannot be made.
    """
    if state is None:
        parent = _in_memory() or tempfile.gettempdir()
        path = Path(parent, f"anynode-sandbox-{secrets.token_hex(6)}")
        try:
            # In here: a Ctrl-C just after it was made must not leave it.
            path.mkdir(mode=0o700)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Could not make the folder {state}: {error.strerror}.",
            hint="Name another one with --state.",
        ) from error
    yield state


class EnvFile:
    """The env file of a sandbox, from the moment in which the API answers to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""

    def check(self) -> None:
        """Refuse early to overwrite what is not ours.

        :raises ConfigError: its folder cannot be written, or it is something else, or belongs to
            a sandbox that runs.
        """
        hint = "Name another file with --env-file."
        try:
            with tempfile.NamedTemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise ConfigError(
                f"Could not write the env file {self.path}: {error.strerror}.", hint=hint
            ) from error
        if self.path.is_dir():
            raise ConfigError(f"The env file {self.path} is a folder.", hint=hint)
        known = read_env_file(self.path)
        if self.path.exists() and MARK not in known:
            raise ConfigError(f"{self.path} was not written by a sandbox, so it stays.", hint=hint)
        if known and _is_listened_on(known.get("AWS_ENDPOINT_URL", "")):
            raise ConfigError(
                f"{self.path} belongs to a sandbox that runs, on {known['AWS_ENDPOINT_URL']}.",
                hint=hint,
            )

    def write(self, sandbox: Sandbox) -> None:
        """Write it whole, readable by its owner alone."""
        more = {
            "ANYNODE_IMAGE": sandbox.image_id,
            # One of another cloud would be sent along, and it fits no key of ours.
            "AWS_SESSION_TOKEN": "",
            MARK: str(sandbox.folder),
        }
        self._text = sandbox.credentials.env_lines(more) + path_line()
        write_whole(self.path, self._text, mode=0o600)

    def remove(self) -> None:
        """Remove it, unless somebody has written it anew. Safe to repeat."""
        try:
            if self._text and self.path.read_text(encoding="utf-8") == self._text:
                self.path.unlink()
        except FileNotFoundError:
            return


def check_account(account: str) -> None:
    """Refuse what is no account number.

    :raises InputError: it is none.
    """
    if not re.fullmatch(r"\d{12}", account, re.ASCII):
        raise InputError(
            f"{account!r} is no account number.", hint="They have twelve digits: 123456789012."
        )


def check_port(port: int) -> None:
    """Refuse early a port that cannot be listened on.

    :raises ConfigError: it is taken, or not for this user.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"Could not listen on 127.0.0.1 port {port}: {error.strerror}.",
                hint="Name another one with --port, or use --port 0 for one that is free.",
            ) from error


def _is_listened_on(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def usage(sandbox: Sandbox, env_path: Path, program: str) -> Sequence[str]:
    """Return the lines that say how a sandbox is used."""
    # A name without a slash would be looked for in PATH.
    shown = shlex.quote(str(env_path) if len(env_path.parts) > 1 else f"./{env_path}")
    zones = ", ".join(sandbox.zones)
    return (
        f"EC2 API    {sandbox.credentials.endpoint}, zones {zones}",
        f"Use it     . {shown} && aws ec2 describe-instances",
        f"Launch     . {shown} && {program} launch --wait",
        f"Timeline   {program} --config {shlex.quote(str(sandbox.config_path))} trace INSTANCE",
        "Stop it    Ctrl-C: nothing stays"
        if sandbox.is_temporary
        else f"Stop it    Ctrl-C: it goes on with --state {shlex.quote(str(sandbox.folder))}",
    )
