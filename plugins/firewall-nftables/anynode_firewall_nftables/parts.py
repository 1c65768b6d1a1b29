"""A network's rules as parts that are rendered, compared and replaced one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TABLE = "anynode"
BRIDGE = f"bridge {TABLE}"
INET = f"inet {TABLE}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one port, group or other thing adds to the rules.

    ``sets`` maps the name of a set or map of the inet table to its declaration, ``chains`` the
    name of a chain there to its rules. ``elements`` maps a set, with family and table, to its
    elements as text: ``key``, ``key : value`` or ``key comment "…"``.
    """

    sets: Mapping[str, str] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    elements: Mapping[str, frozenset[str]] = field(default_factory=dict)


EMPTY = Part()


def key_of(element: str) -> str:
    """Return an element without its value and comment."""
    return element.split(" : ", 1)[0].split(" comment ", 1)[0]


@dataclass
class Transaction:
    """Commands for nft, in an order in which each finds what it refers to."""

    declared: list[str] = field(default_factory=list)
    flushed: list[str] = field(default_factory=list)
    deleted: dict[str, list[str]] = field(default_factory=dict)
    added: dict[str, list[str]] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def replace(self, old: Part, new: Part) -> None:
        """Add what turns one part into another."""
        for name, declaration in new.sets.items():
            if name not in old.sets:
                kind = "map" if " : " in declaration else "set"
                self.declared.append(f"add {kind} {INET} {name} {{ {declaration}; }}")
        for name, rules in new.chains.items():
            if name not in old.chains:
                self.declared.append(f"add chain {INET} {name}")
            elif old.chains[name] != rules:
                self.flushed.append(f"flush chain {INET} {name}")
            if old.chains.get(name) != rules:
                self.rules += [f"add rule {INET} {name} {rule}" for rule in rules]
        gone = {f"{INET} {name}" for name in old.sets.keys() - new.sets.keys()}
        for name in (old.elements.keys() | new.elements.keys()) - gone:
            before = old.elements.get(name, frozenset())
            after = new.elements.get(name, frozenset())
            self.delete(name, map(key_of, before - after))
            self.add(name, after - before)
        for name in old.chains.keys() - new.chains.keys():
            self.flushed.append(f"flush chain {INET} {name}")
            self.dropped.append(f"delete chain {INET} {name}")
        for name in old.sets.keys() - new.sets.keys():
            kind = "map" if " : " in old.sets[name] else "set"
            self.flushed.append(f"flush {kind} {INET} {name}")
            self.dropped.append(f"delete {kind} {INET} {name}")

    def delete(self, name: str, keys: Iterable[str]) -> None:
        """Add the removal of elements; a key that is not there fails the whole transaction."""
        if listed := list(keys):
            self.deleted.setdefault(name, []).extend(listed)

    def add(self, name: str, elements: Iterable[str]) -> None:
        """Add new elements."""
        if listed := list(elements):
            self.added.setdefault(name, []).extend(listed)

    def commands(self) -> list[str]:
        """Return the commands; elements in order, so that equal changes give equal text."""
        chains_last = sorted(self.dropped, key=lambda line: not line.startswith("delete chain"))
        return [
            *self.declared,
            *self.flushed,
            *_per_set("delete", self.deleted),
            *_per_set("add", self.added),
            *self.rules,
            *chains_last,
        ]


def _per_set(verb: str, elements: Mapping[str, list[str]]) -> list[str]:
    return [
        f"{verb} element {name} {{ {', '.join(sorted(elements[name]))} }}"
        for name in sorted(elements)
    ]
