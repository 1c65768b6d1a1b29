"""The machine around the node, and the secrets that must not be seen on it."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from appliance import seal
from appliance.config import Config
from appliance.errors import AnynodeError
from appliance.hooks import Observers
from appliance.model import Finding
from appliance.plugin_loader import quiet_loader_of
from appliance.role import STORE_ROLES
from appliance.store import Transaction, sqlite_path
from appliance.store import facts as store_facts
from appliance.verify import codes, services
from appliance.verify.facts import Facts, read_store
from appliance.verify.node_facts import NodeFacts, command_lines

LEAST_FREE_BYTES = 1 << 30
LEAST_FREE_RUN_BYTES = 16 << 20
LEAST_FREE_FILES = 1000
CLOCK_SLACK_S = 2.0
SILENCE_S = 60.0
SHORTEST_SECRET = 16
_CHUNK_BYTES = 1 << 20


def look(config: Config, facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong around the node of these settings."""
    yield from look_here(config, facts)
    yield from look_from_store(config, facts)


def look_here(config: Config, facts: Facts | NodeFacts) -> Iterator[Finding]:
    """Yield what is wrong around a node as far as it can tell without the store."""
    for what, why in facts.unread.items():
        yield codes.UNREAD.found(what, f"Could not look at {what}: {why}")
    for what in facts.hidden:
        text = f"What {what} has is in the memory of the node's process, and was not looked at."
        yield codes.HIDDEN.found(what, text)
    yield from _firewall(config, facts)
    yield from _machine(config)
    yield from services.look_here(config)
    yield from _mounts(config)
    yield from _modes(config)
    if config.observers:
        yield from _observed(config)


def look_from_store(config: Config, facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong around the node of these settings, by what the store says."""
    yield from _node(config, facts)
    yield from _clock(config, facts)
    yield from services.look_at_broker(config)
    yield from strangers(facts)
    yield from _secrets(config, facts)


def _node(config: Config, facts: Facts) -> Iterator[Finding]:
    if not facts.is_running:
        yield codes.NOT_RUNNING.found(config.node_name, "The node does not run.")
        return
    is_alone = config.bus.url == "local:" or len(facts.store.seen_at) < 2
    yield from as_member(config.node_name, config.node.roles, facts, is_alone=is_alone)


def as_member(
    name: str, roles: Collection[str], facts: Facts, *, is_alone: bool = False
) -> Iterator[Finding]:
    """Yield what is wrong with how a node that is up takes part, by what the store says.

    :param is_alone: there are no other nodes.
    """
    silent_s = facts.now - facts.store.seen_at.get(facts.node_id, 0.0)
    if "compute" in roles and silent_s > SILENCE_S:
        text = f"The node has not been heard of for {silent_s:.0f} s."
        yield codes.SILENT.found(name, text)
    meeting = sorted(STORE_ROLES.intersection(roles))
    if "compute" in roles and meeting and not is_alone:
        text = f"compute and {', '.join(meeting)} are on one node of a cluster."
        yield codes.ROLES_MEET.found(name, text)


def _firewall(config: Config, facts: Facts | NodeFacts) -> Iterator[Finding]:
    if config.firewall.driver == "none":
        yield codes.NO_FIREWALL.found(config.node_name, "firewall.driver is none.")
    elif facts.firewall is not None:
        if not facts.firewall.is_guarded:
            text = "Taps without rules are not held back."
            yield codes.UNGUARDED.found(config.node_name, text)
        for text in facts.firewall.warnings:
            yield codes.FIREWALL_WARNS.found(config.firewall.driver, text)
    for name, state in facts.network_states.items():
        for text in state.warnings:
            yield codes.NETWORK_WARNS.found(name, text)


def _machine(config: Config) -> Iterator[Finding]:
    if config.compute.driver != "fake" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        yield codes.NO_KVM.found(config.node_name, "/dev/kvm is missing, or is not ours to use.")
    yield from _disks(config)


def _clock(config: Config, facts: Facts) -> Iterator[Finding]:
    behind_s = facts.store.newest_at - facts.now
    if behind_s > CLOCK_SLACK_S:
        text = f"The clock is {behind_s:.0f} s behind the newest heartbeat."
        yield codes.CLOCK_BACK.found(config.node_name, text)


def _disks(config: Config) -> Iterator[Finding]:
    """Look at each file system that the node writes to, once."""
    seen: set[int] = set()
    stored = sqlite_path(config.store_url)
    folders = (
        config.state_dir,
        config.state_dir / "instances",
        config.images_dir,
        config.run_dir,
        *([stored.parent] if stored else []),
    )
    for folder in folders:
        if not folder.is_dir() or folder.stat().st_dev in seen:
            continue
        seen.add(folder.stat().st_dev)
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        least = LEAST_FREE_BYTES if folder != config.run_dir else LEAST_FREE_RUN_BYTES
        if free < least:
            yield codes.DISK_FULL.found(str(folder), f"{folder} has {free >> 20} MiB left.")
        elif disk.f_files > 0 and disk.f_favail < LEAST_FREE_FILES:
            text = f"The disk of {folder} has room for {disk.f_favail} more files."
            yield codes.DISK_FULL.found(str(folder), text)
        if disk.f_flag & os.ST_RDONLY:
            yield codes.DISK_READ_ONLY.found(str(folder), f"{folder} is on a read-only disk.")


def strangers(facts: Facts) -> Iterator[Finding]:
    """Find processes that use the folder of a network or an instance that is not on the node."""
    here = {*facts.held, *(one.instance_id for one in facts.store.placements)}
    for user in facts.users:
        if user.owner not in here and user.owner not in facts.store.networks:
            text = f"Process {user.pid} ({user.program}) works for {user.owner}, which is not here."
            yield codes.PROCESS_ORPHAN.found(str(user.pid), text)


def _mounts(config: Config) -> Iterator[Finding]:
    instances = str(config.state_dir / "instances") + "/"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        target = line.split()[4]
        if target.startswith(instances):
            yield codes.MOUNT_ORPHAN.found(target, f"{target} is a mount.")


def private_files(config: Config) -> list[Path]:
    """Return the files of a node that hold secrets, as far as they are there."""
    state = config.state_dir
    databases = [state / "compute.sqlite", state / "datapath.sqlite"]
    stored = sqlite_path(config.store_url)
    databases += [stored] if stored else []
    beside = [Path(f"{path}{end}") for path in databases for end in ("", "-wal", "-shm")]
    files = [*beside, state / "metadata.key", seal.key_path(state), *_logs(config)]
    files += services.private_files(state)
    return [path for path in files if path.exists()]


def _logs(config: Config) -> list[Path]:
    folder = config.state_dir / "log"
    named = [Path(config.node.log_file)] if config.node.log_file else []
    return [*named, *(sorted(folder.iterdir()) if folder.is_dir() else [])]


def _modes(config: Config) -> Iterator[Finding]:
    for path in private_files(config):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield codes.FILE_OPEN.found(str(path), f"{path} has mode {mode:04o}.")


def _secrets(config: Config, facts: Facts) -> Iterator[Finding]:
    """Look for known secrets where they must not be; needs the key file of the node."""
    key_path = seal.key_path(config.state_dir)
    if not os.access(key_path, os.R_OK):
        return
    try:
        keys = seal.load(key_path)
        known = read_store(config, lambda tx: store_facts.secrets_of(tx, keys))
    except AnynodeError as error:
        yield codes.UNREAD.found("the secrets", f"Could not open the secrets: {error}")
        return
    wanted = _forms(known)
    if not wanted:
        return
    for where, text in _places(config):
        for whose in sorted({whose for form, whose in wanted.items() if form in text}):
            yield codes.SECRET_SEEN.found(f"{where}: {whose}", f"{whose} is to be seen in {where}.")


def _forms(known: Mapping[str, str]) -> dict[str, str]:
    """Return each secret as it could be written down, with whose it is."""
    forms = {}
    for whose, value in known.items():
        forms[value] = whose
        if whose.startswith("the user data"):
            try:
                forms[base64.b64decode(value, validate=True).decode()] = whose
            except (binascii.Error, UnicodeDecodeError):
                continue
    return {form: whose for form, whose in forms.items() if len(form) >= SHORTEST_SECRET}


def _places(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the texts that people, programs and queues see, by where they are."""
    for pid, words in command_lines().items():
        yield f"the command line of process {pid}", " ".join(words)
    for path in _logs(config):
        yield from ((str(path), text) for text in _chunks(path))

    def stored(tx: Transaction) -> list[tuple[str, str]]:
        return list(store_facts.texts(tx).items())

    yield from read_store(config, stored)


def _chunks(path: Path) -> Iterator[str]:
    """Yield a file in pieces that overlap, so that nothing hides at a border."""
    with path.open("rb") as file:
        tail = b""
        while piece := file.read(_CHUNK_BYTES):
            yield (tail + piece).decode(errors="replace")
            tail = piece[-65536:]


def _observed(config: Config) -> Iterator[Finding]:
    try:
        observers = quiet_loader_of(config).create_all("appliance.observer", config.observers)
        yield from Observers(observers).node_check()
    except AnynodeError as error:
        yield codes.UNREAD.found("the observers", f"Could not ask the observers: {error}")
