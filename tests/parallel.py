"""How tests are dealt to several processes (``pytest -n 2``): by their files, the long ones first.

Loaded by the root ``conftest.py``. A file's tests stay together, since they share what takes long
to make; so do all tests of the one real node. Each process makes the services that it needs.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

TOGETHER = ("tests/node/",)
"""Folders whose tests share what only one process should make."""

LONG = (
    "tests/node/",
    "tests/cluster/",
    "tests/faults/",
    "tests/bus/",
    "tests/simulation/",
    "tests/clients/",
    "plugins/compute-libvirt/",
)
"""Where tests take long, the longest first: begun last, one would leave the others idle."""


def unit_of(nodeid: str) -> str:
    """Return what a test belongs to that is dealt as a whole."""
    path = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if path.startswith(folder)), path)


def rank_of(nodeid: str) -> int:
    """Return a test's place among all: smaller is earlier."""
    return next((i for i, folder in enumerate(LONG) if nodeid.startswith(folder)), len(LONG))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long tests first where there are several processes."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank_of(item.nodeid))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name what fails as soon as it does: twenty minutes are long, and a run may be cut off."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})", flush=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal whole units, in the order of the tests."""
    # Only here: a run in one process needs none of it.
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):  # type: ignore[misc]  # xdist says no types
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return ByUnit(config, log)
