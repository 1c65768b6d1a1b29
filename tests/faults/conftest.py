"""Nodes on fakes, each with a process of its own that may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.life import Environment, Life, template

MakeLife = Callable[..., Life]


@pytest.fixture
def make_life(tmp_path: Path) -> Iterator[MakeLife]:
    """A function that makes a node beside whose bystander an instance may live, and starts it.

    Its arguments are the environments of the node's processes, in order; all further ones have
    none. Without any the node is not started.
    """
    made: list[Life] = []

    def make(*lives: Environment) -> Life:
        life = Life(template().copy(tmp_path), lives[1:])
        made.append(life)
        if lives:
            life.node.start(**lives[0])
        return life

    yield make
    for life in made:
        life.node.kill()
