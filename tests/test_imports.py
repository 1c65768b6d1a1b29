"""Who may import what: the layers of the tree, held by reading every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for pattern in ("appliance/**/*.py", "plugins/*/anynode_*/**/*.py")
    for path in ROOT.glob(pattern)
)

ONLY_IN = {
    "sqlalchemy": ("appliance/store/",),
    "alembic": ("appliance/store/",),
    "flask": ("appliance/api/",),
    "cheroot": ("appliance/api/",),
    "libvirt": ("plugins/compute-libvirt/",),
    "nftables": ("plugins/firewall-nftables/",),
    "subprocess": ("appliance/run.py",),
    "boto3": (),
}
"""Modules that are a matter of one place, and that place."""

NODE_ROLES = ("appliance/compute/", "appliance/datapath/")
"""The roles that have no database but their journal."""


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, those for type checks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _without_type_checks(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_type_checks(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _without_type_checks(child)


def is_in(path: Path, places: tuple[str, ...]) -> bool:
    """Say whether a file is in one of the places."""
    return path.relative_to(ROOT).as_posix().startswith(places) if places else False


def test_there_are_sources() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_a_library_stays_in_its_place(module: str) -> None:
    strangers = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if not is_in(path, ONLY_IN[module])
        for name in imports(path)
        if name == module or name.startswith(f"{module}.")
    ]
    assert strangers == []


def test_node_roles_do_not_reach_the_store() -> None:
    strangers = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if is_in(path, NODE_ROLES)
        for name in imports(path)
        if name.startswith("appliance.store")
    ]
    assert strangers == []


def test_plugins_use_what_a_stranger_may() -> None:
    """A plugin imports contracts, values and tools, never a role, the store or the bus."""
    inner = ("appliance.store", "appliance.bus", "appliance.node", "appliance.controller")
    strangers = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if is_in(path, ("plugins/",))
        for name in imports(path)
        if name.startswith(inner)
    ]
    assert strangers == []


def test_nothing_calls_a_shell() -> None:
    callers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert callers == []
