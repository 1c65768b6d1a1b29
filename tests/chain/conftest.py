"""Nodes in memory, for the tests of the whole chain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chain.harness import Chain, Killed, Machine, quicken

MakeChain = Callable[..., Chain]


@pytest.fixture(autouse=True)
def quiet_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the threads of a killed node die without a word."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, Killed):
            before(arguments)

    monkeypatch.setattr(threading, "excepthook", hook)


@contextmanager
def chains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeChain]:
    """Give a function that starts a node; ``capacity`` is the machine's, the rest are settings."""
    made: list[Chain] = []
    quicken(monkeypatch)

    def make(capacity: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Chain:
        machine = Machine(**(capacity or {}))
        machine.install(monkeypatch)
        chain = Chain(folder, machine, **sections)
        made.append(chain)
        return chain

    yield make
    for chain in made:
        chain.faults.clear()
        chain.stop()


@pytest.fixture
def make_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeChain]:
    """A function that starts a node."""
    with chains(tmp_path, monkeypatch) as make:
        yield make


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:
    """A node that is up."""
    return make_chain()
