"""Nodes on fakes, each with a process of its own that may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.life import Environment, Life, template

MakeLife = Callable[..., Life]


@pytest.fixture
def make_life(tmp_path: Path) -> Iterator[MakeLife]:
    """A function that starts a node beside whose bystander an instance may live.

    Its arguments are the environments of the node's processes, in order; all further ones have
    none.
    """
    made: list[Life] = []

    def make(environment: Environment, *lives: Environment) -> Life:
        node = template().copy(tmp_path)
        life = Life(node, lives)
        made.append(life)
        node.start(**environment)
        return life

    yield make
    for life in made:
        life.node.kill()
