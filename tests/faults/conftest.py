"""Nodes on fakes, each with a process of its own that may die, alone or in clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.life import Environment, Life, template
from tests.faults.mortals import Mortals, Standing, four_nodes, mortals
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

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


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[Standing]:
    """A cluster of four nodes whose processes may be killed, for the tests of a module."""

    @contextmanager
    def make() -> Iterator[Mortals]:
        folder = tmp_path_factory.mktemp("mortals")
        with mortals(folder, postgresql, rabbitmq.new_vhost()) as cluster:
            yield four_nodes(cluster)

    made = Standing(make)
    yield made
    made.end()


@pytest.fixture
def cluster(standing: Standing) -> Iterator[Mortals]:
    """Two control nodes and two hypervisors, which the test must leave sound."""
    with standing.use() as made:
        yield made
