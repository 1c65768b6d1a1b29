"""Taking a node off its machine: everything that it made goes, and nothing else.

Runs after the node's process has ended. Each part is safe to repeat and makes do with whatever is
left; what fails is collected, and the rest goes on. Rules go only after the last tap, folders only
after everything that they know of.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from appliance.cluster import services
from appliance.config import Config
from appliance.datapath.record import NETWORK, NetworkRecord
from appliance.errors import AnynodeError, ConfigError, Conflict, PluginError
from appliance.hooks import Compute, Driver, Firewall, Network
from appliance.journal import Journal
from appliance.plugin_loader import PluginLoader, loader_of, used_names

log = logging.getLogger(__name__)

Say = Callable[[str], None]
D = TypeVar("D", bound=Driver)

STATE_NAMES = frozenset(
    {"attic", "cluster", "compute", "datapath", "images", "instances", "log", "metadata"}
    | {"node_id", "plugins", "seal", "services", "store"}
)
"""What a state folder holds: names up to the first dot or dash."""

RUN_NAMES = frozenset({"boot_id", "node", "plugins"})
"""What a run folder holds, likewise."""

MARKS = ("node_id", "node.lock")
"""The files by which a folder is known to be a node's; they go last."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that could not be removed: why, and how to do it by hand."""

    what: str
    why: str
    by_hand: str


@dataclass
class Teardown:
    """One teardown: what it works on, and what has come of it so far."""

    config: Config
    say: Say
    removed: list[str] = field(default_factory=list)
    left: list[Leftover] = field(default_factory=list)

    @property
    def plugins(self) -> PluginLoader:
        """What makes the plugins."""
        return loader_of(self.config)

    def names(self, group: str) -> tuple[str, ...]:
        """Return the plugins that have ever been made here."""
        return used_names(self.config, group)

    def make(self, driver: type[D], name: str) -> D | None:
        """Make a plugin; ``None`` when that fails on a node that never got to make anything."""
        try:
            return driver(name, self.plugins.create(driver.group, name))
        except (ConfigError, PluginError):
            if _has_built(self.config):
                raise
            return None

    def note(self, what: str) -> None:
        """Write down, and say, what was removed."""
        self.removed.append(what)
        self.say(f"removed {what}")

    @contextlib.contextmanager
    def trying(self, what: str, by_hand: str) -> Iterator[None]:
        """Collect what fails in the block instead of raising it."""
        try:
            yield
        except (AnynodeError, OSError) as error:
            log.warning("could not remove %s: %s", what, error)
            self.left.append(Leftover(what=what, why=str(error), by_hand=by_hand))


def tear_down(config: Config, say: Say = lambda text: None) -> tuple[str, ...]:
    """Remove all that a node has made on this machine; return what was removed.

    The image cache below ``/var/cache`` stays. Safe to repeat.

    :param say: called with one line per thing removed.
    :raises Conflict: the node's process still runs, and nothing was removed; or some things are
        left, and the message says which, why, and how to remove them by hand.
    """
    if not (_is_ours(config.state_dir) or _is_ours(config.run_dir)):
        return ()
    run = Teardown(config, say)
    with _no_other_process(config):
        for name, part in PARTS:
            log.debug("teardown: %s", name)
            part(run)
    if run.left:
        raise Conflict(_text(run.left), hint="Then run it again.")
    return tuple(run.removed)


def _text(left: list[Leftover]) -> str:
    lines = [f"{one.what}: {one.why}\n    by hand: {one.by_hand}" for one in left]
    return f"{len(left)} things are left.\n  " + "\n  ".join(lines) + "\n"


@contextlib.contextmanager
def _no_other_process(config: Config) -> Iterator[None]:
    """Keep a node from starting on these folders meanwhile."""
    config.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    with (config.run_dir / "node.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"A node still runs on {config.run_dir}.", hint="Stop it first."
            ) from error
        yield


_BY_HAND_INSTANCES = "virsh list --all; virsh destroy, then virsh undefine, those called i-…"
_BY_HAND_LINKS = "ip -details link; ip link delete those whose alias begins with anynode:"
_BY_HAND_RULES = "nft list tables; nft delete table … those called anynode…"


def remove_instances(run: Teardown) -> None:
    """Power off and forget all instances of ours; their files go with the state folder."""
    for name in run.names(Compute.group):
        with run.trying(f"the instances of {name}", _BY_HAND_INSTANCES):
            driver = run.make(Compute, name)
            if driver is None:
                continue
            for fact in driver.list():
                with run.trying(f"instance {fact.instance_id}", _BY_HAND_INSTANCES):
                    driver.remove(fact.instance_id)
                    run.note(f"instance {fact.instance_id}")


def detach_ports(run: Teardown) -> None:
    """Remove all taps and leases, then the networks themselves."""
    for name in run.names(Network.group):
        with run.trying(f"the networks of type {name}", _BY_HAND_LINKS):
            driver = run.make(Network, name)
            if driver is None:
                continue
            for port in driver.list().ports:
                with run.trying(f"port {port.port_id}", f"ip link delete {port.tap}"):
                    driver.detach(port.port_id)
                    run.note(f"port {port.port_id}")
            known = set(driver.list().network_ids) | _known_networks(run.config, name)
            for network_id in sorted(known):
                with run.trying(f"network {network_id}", _BY_HAND_LINKS):
                    driver.release(network_id)
                    run.note(f"network {network_id}")


def _known_networks(config: Config, kind: str) -> set[str]:
    """Return the networks of a type that the node's own journal names."""
    path = config.state_dir / "datapath.sqlite"
    if not path.exists():
        return set()
    journal = Journal(path)
    try:
        records = journal.all(NETWORK, NetworkRecord)
    finally:
        journal.close()
    return {key for key, record in records.items() if record.network.type == kind}


def _has_built(config: Config) -> bool:
    """Say whether there has ever been an instance or a network on these folders."""
    instances_dir = config.state_dir / "instances"
    has_instances = instances_dir.is_dir() and any(instances_dir.iterdir())
    return has_instances or (config.state_dir / "datapath.sqlite").exists()


def withdraw_firewall(run: Teardown) -> None:
    """Remove all rules; not while an instance or a tap may be left that they guard."""
    if run.left:
        why = "They stay as long as an instance or a port may be left that they guard."
        run.left.append(Leftover(what="the firewall's rules", why=why, by_hand=_BY_HAND_RULES))
        return
    for name in run.names(Firewall.group):
        with run.trying(f"the rules of {name}", _BY_HAND_RULES):
            driver = run.make(Firewall, name)
            if driver is None:
                continue
            state = driver.state()
            driver.withdraw()
            if state.is_guarded or state.taps or state.revisions:
                run.note(f"the rules of {name}")


def stop_daemons(run: Teardown) -> None:
    """End the daemons that plugins have started; those that the machine started go on."""
    for name in run.names(Compute.group):
        with run.trying(f"the daemons of {name}", "ps -e; end libvirtd and virtlogd"):
            run.plugins.withdraw(Compute.group, name)


def stop_services(run: Teardown) -> None:
    """End the cluster's own store and broker, if this node runs them; what they hold goes, too."""
    with run.trying("the cluster's services", "ps -e; end postgres, beam.smp and epmd of ours"):
        for name in services.stop(run.config.state_dir, is_orderly=False):
            run.note(name)


def remove_folders(run: Teardown) -> None:
    """Remove the node's folders; while anything else is left they stay, for they know of it."""
    if run.left:
        return
    _remove_folder(run, run.config.state_dir, STATE_NAMES)
    _remove_folder(run, run.config.run_dir, RUN_NAMES)


def _remove_folder(run: Teardown, folder: Path, names: frozenset[str]) -> None:
    if not folder.is_dir():
        return
    with run.trying(str(folder), f"look at it, then rm -r {folder}"):
        entries = sorted(folder.iterdir(), key=lambda path: (path.name in MARKS, path.name))
        foreign = [path.name for path in entries if _stem(path.name) not in names]
        if foreign:
            raise Conflict(f"It holds what no node has made: {', '.join(foreign)}.")
        for path in entries:
            _remove(path)
        if not (folder.is_mount() or folder.is_symlink()):
            folder.rmdir()
        run.note(str(folder))


def _stem(name: str) -> str:
    """Return a name up to its first dot or dash: that of the file that it lies beside."""
    return re.split("[.-]", name.lstrip("."))[0]


def _remove(path: Path) -> None:
    """Remove a file or a tree, never what a symbolic link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Say whether a folder bears the mark of a node."""
    return any(os.path.lexists(folder / mark) for mark in MARKS)


PARTS: tuple[tuple[str, Callable[[Teardown], None]], ...] = (
    ("remove-instances", remove_instances),
    ("detach-ports", detach_ports),
    ("withdraw-firewall", withdraw_firewall),
    ("stop-daemons", stop_daemons),
    ("stop-services", stop_services),
    ("remove-folders", remove_folders),
)
"""What is done, in order."""
