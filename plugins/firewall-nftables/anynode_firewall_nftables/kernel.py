"""The kernel's rules through libnftables: commands as text, answers as JSON."""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from anynode_firewall_nftables.base import BRIDGE_SETS, LAYOUT, NETWORK_MAPS
from anynode_firewall_nftables.epochs import SHIFT
from anynode_firewall_nftables.parts import BRIDGE, INET, TABLE
from appliance.errors import CommandFailed, ConfigError
from appliance.firewall.rules import IPAddress

log = logging.getLogger(__name__)

_ATTEMPTS = 5
_SHOWN_CHARACTERS = 2000
_MISSING = "No such file or directory"
_BUSY = ("Resource temporarily unavailable", "Interrupted system call", "Resource busy")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the kernel remembers of a network: the element that was put there with its rules."""

    bridge: str
    revision: int
    zone: int


@dataclass(kw_only=True)
class Leftover:
    """What is in the kernel for one network, to be removed or replaced."""

    sets: dict[str, str] = field(default_factory=dict)
    chains: set[str] = field(default_factory=set)
    elements: dict[str, set[str]] = field(default_factory=dict)


class Ruleset:
    """The rules of the network namespace that the calling thread is in.

    libnftables binds its socket to the namespace when its context is made and may not be used by
    two threads at once: each thread has a context of its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def _context(self) -> Any:
        if not hasattr(self._local, "context"):
            try:
                import nftables
            except ImportError as error:
                raise ConfigError(
                    "The firewall plugin nftables needs libnftables' Python module.",
                    hint="Install python3-nftables and make it importable.",
                ) from error
            self._local.context = nftables.Nftables()
        return self._local.context

    def apply(self, commands: Iterable[str]) -> None:
        """Run commands as one transaction; a transaction that met another one is tried again.

        :raises CommandFailed: the kernel or libnftables refused; nothing was changed.
        """
        text = "\n".join(commands)
        log.debug("nft: %d bytes", len(text))
        context = self._context()
        context.set_json_output(False)
        for _ in range(_ATTEMPTS):
            status, _, error = context.cmd(text)
            if not status:
                return
            if not any(busy in error for busy in _BUSY):
                break
        raise CommandFailed(
            f"nftables refused a change, the rules stay as they were: {error[:_SHOWN_CHARACTERS]}"
        )

    def ask(self, command: str) -> list[dict[str, Any]] | None:
        """Return the objects that a ``list`` command shows; ``None`` when its subject is missing.

        :raises CommandFailed: the question was refused for another reason.
        """
        context = self._context()
        context.set_json_output(True)
        status, answer, error = context.cmd(command)
        if status:
            if _MISSING in error:
                return None
            raise CommandFailed(f"nft {command} failed: {error[:_SHOWN_CHARACTERS]}")
        return json.loads(answer)["nftables"] if answer else []

    def elements(self, name: str, kind: str = "set") -> list[Any] | None:
        """Return the elements of a set or map (family, table, name); ``None`` when missing."""
        objects = self.ask(f"list {kind} {name}")
        if objects is None:
            return None
        return [element for item in objects for element in item.get(kind, {}).get("elem", [])]

    def stored(self) -> dict[str, Stored] | None:
        """Return what the kernel remembers, by network; ``None`` when our table is missing."""
        elements = self.elements(f"{INET} networks")
        if elements is None:
            return None
        found: dict[str, Stored] = {}
        for bridge, comment in map(_with_comment, elements):
            network_id, revision, zone = comment.split()
            found[network_id] = Stored(bridge=bridge, revision=int(revision), zone=int(zone))
        return found

    def epoch(self) -> int | None:
        """Return the epoch in force; ``None`` when there is none."""
        found = self.elements(f"{INET} epoch")
        return int(found[0]) if found else None

    def former(self) -> dict[tuple[str, IPAddress], int]:
        """Return addresses with their bridges, and the last epoch of those who had them before."""
        return {
            (bridge, ipaddress.ip_address(address)): _end(marks) >> SHIFT
            for version in (4, 6)
            for element in self.elements(f"{INET} former{version}") or ()
            for bridge, address, marks in (element["concat"],)
        }

    def taps(self) -> dict[str, str] | None:
        """Return the known taps with their networks; ``None`` when our table is missing."""
        elements = self.elements(f"{BRIDGE} taps")
        return None if elements is None else dict(map(_with_comment, elements))

    def has_layout(self, family: str) -> bool | None:
        """Return whether our table is of this release; ``None`` when there is none."""
        if self.ask(f"list set {family} {TABLE} {LAYOUT}") is not None:
            return True
        tables = self.ask("list tables") or []
        there = any(
            (item["table"]["family"], item["table"]["name"]) == (family, TABLE)
            for item in tables
            if "table" in item
        )
        return False if there else None

    def rule_counts(self, family: str) -> dict[str, int]:
        """Return the chains of our table with the number of their rules."""
        counts: dict[str, int] = {}
        for item in self._terse(f"list table {family} {TABLE}"):
            if "chain" in item:
                counts.setdefault(item["chain"]["name"], 0)
            elif "rule" in item:
                chain = item["rule"]["chain"]
                counts[chain] = counts.get(chain, 0) + 1
        return counts

    def inventory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many rules each chain and how many elements each set of the inet table has.

        Sets are called by family, table and name. Costs a listing of everything.
        """
        elements = {
            f"{INET} {thing['name']}": len(thing.get("elem", []))
            for item in self.ask(f"list table {INET}") or []
            for thing in (item.get("set") or item.get("map"),)
            if thing
        }
        return self.rule_counts("inet"), elements

    def keys(self, name: str) -> list[str] | None:
        """Return the keys of a set of the bridge table, as text; ``None`` when it is missing."""
        elements = self.elements(name)
        return None if elements is None else list(map(_key, elements))

    def leftover(self, network_id: str, bridge: str) -> Leftover:
        """Return all that the kernel has of one network; costs a listing of our tables."""
        found = Leftover()
        for name in NETWORK_MAPS:
            pairs = self.elements(f"{INET} {name}", "map") or []
            if any(key == bridge for key, _ in pairs):
                found.elements[f"{INET} {name}"] = {f'"{bridge}"'}
        for item in self._terse(f"list table {INET}"):
            for kind in ("set", "map", "chain"):
                name = item.get(kind, {}).get("name", "")
                if network_id not in name.split("."):
                    continue
                if kind == "chain":
                    found.chains.add(name)
                else:
                    found.sets[name] = kind
        mine = {tap for tap, owner in (self.taps() or {}).items() if owner == network_id}
        for name in BRIDGE_SETS if mine else ():
            keys = self.keys(f"{BRIDGE} {name}") or []
            found.elements[f"{BRIDGE} {name}"] = {
                key for key in keys if key.split('"', 2)[1] in mine
            }
        return found

    def _terse(self, command: str) -> list[dict[str, Any]]:
        context = self._context()
        context.set_terse_output(True)
        try:
            return self.ask(command) or []
        finally:
            context.set_terse_output(False)


def _with_comment(element: Any) -> tuple[str, str]:
    if isinstance(element, dict):
        inner = element["elem"]
        return str(inner["val"]), str(inner.get("comment", ""))
    return str(element), ""


def _key(element: Any) -> str:
    """Return an element as the text that deletes it: the device in quotes first."""
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    words = element["concat"] if isinstance(element, dict) else [element]
    return " . ".join([f'"{words[0]}"', *map(str, words[1:])])


def _end(marks: dict[str, Any]) -> int:
    """Return the end of a range of marks that begins with zero."""
    if "prefix" in marks:
        return (1 << 32 - int(marks["prefix"]["len"])) - 1
    return int(marks["range"][1])
