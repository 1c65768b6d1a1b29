"""Races are run again and again: once in ``make test``, all rounds in ``make test-faults``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from tests.services.stores import KINDS

T = TypeVar("T")
ROUNDS = 20


def rounds(group: str, count: int = ROUNDS, *, is_quick: bool = True) -> pytest.MarkDecorator:
    """Let a test run so often in the matrix, and its first round in ``make test``."""
    first = pytest.param(1, marks=pytest.mark.faults(group, quick=is_quick))
    rest = [pytest.param(number, marks=pytest.mark.faults(group)) for number in range(2, count + 1)]
    return pytest.mark.parametrize("number", [first, *rest])


def rounds_on_both(
    group: str, count: int = ROUNDS, *, is_quick: bool = True, is_server_quick: bool = False
) -> pytest.MarkDecorator:
    """Let a test run so often on each kind of store; ``make test`` has the first rounds.

    :param is_server_quick: whether that of a store on a server is among them.
    """
    quick = {"sqlite": is_quick, "postgresql": is_quick and is_server_quick}
    cases = [
        pytest.param(
            number, kind, marks=pytest.mark.faults(group, quick=quick[kind] and number == 1)
        )
        for kind in KINDS
        for number in range(1, count + 1)
    ]
    return pytest.mark.parametrize(("number", "store_url"), cases, indirect=["store_url"])


def at_once(works: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run all at the same moment, each on a thread of its own; return answers or errors."""
    ready = threading.Barrier(len(works))

    def begin(work: Callable[[], T]) -> T | Exception:
        ready.wait(30)
        try:
            return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def answers(results: Sequence[Any]) -> list[Any]:
    """Return the results; :raises AssertionError: one is an error."""
    errors = [each for each in results if isinstance(each, Exception)]
    assert errors == [], f"{len(errors)} of {len(results)} failed: {errors[0]!r}"
    return list(results)


def codes(results: Sequence[Any]) -> list[str]:
    """Return the EC2 code of each error, and nothing for answers, sorted."""
    return sorted(
        each.response["Error"]["Code"] if hasattr(each, "response") else repr(each)
        for each in results
        if isinstance(each, Exception)
    )
