"""T51: each single write fails once, of everything that a node writes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk.shim import run_case

CASES = {
    "image_import": "image import",
    "cache_fetch": "image cache",
    "overlay": "overlay",
    "config_disk": "config disk",
    "journal": "journal",
    "store": "store",
    "store_that_stays_open": "store",
    "node_id": "ids and keys",
    "token_key": "ids and keys",
    "seal_key": "ids and keys",
    "lease": "DHCP leases",
    "network_record": "network record",
    "attic": "attic",
}
CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}
EXPECTED = {
    "image_import": ("open64 images", "write #", "fsync #", "linkat "),
    "overlay": ("write .disk-0.qcow2.partial", "fsync .disk-0.qcow2.partial", "disk-0.qcow2"),
    "config_disk": ("write .config.iso.partial", "fsync .config.iso.partial", "config.iso"),
    "journal": ("pwrite64 compute.sqlite-wal", "fdatasync compute.sqlite-wal"),
    "store": ("pwrite64 store.sqlite-wal", "fdatasync store.sqlite-wal"),
    "node_id": ("write .node_id.new", "fsync .node_id.new", "rename node_id"),
}
"""Some of the calls that must be among those that failed, so that nobody tests nothing."""

Outcomes = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """A function that returns what came of all cases with a code; one process runs them all."""

    @cache
    def run(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(name)
        answers = run_case(library, folder, "several", [*CASES], CODES[name], deadline_s=240)
        return dict(answers)

    return run


def _params() -> list[Any]:
    return [
        pytest.param(
            *(case, name),
            marks=pytest.mark.faults(f"disk: {group}", quick=name == "EIO"),
            id=f"{case}-{name}",
        )
        for case, group in CASES.items()
        for name in CODES
    ]


@pytest.mark.parametrize(("case", "name"), _params())
def test_t51_each_write_fails_once(outcomes: Outcomes, case: str, name: str) -> None:
    calls = outcomes(name)[case]
    assert isinstance(calls, list), calls
    assert len(calls) >= 2
    for wanted in EXPECTED.get(case, ()):
        assert any(wanted in call for call in calls), (wanted, calls)


@pytest.mark.faults("disk: log", quick=True)
def test_t51_a_log_that_cannot_be_written_harms_nobody(library: Path, tmp_path: Path) -> None:
    assert run_case(library, tmp_path, "log_lines", errno.EIO, deadline_s=60)["hits"] > 0


@pytest.mark.faults("disk: store")
@pytest.mark.parametrize("name", CODES)
def test_t51_each_write_of_a_new_store_fails_once(library: Path, tmp_path: Path, name: str) -> None:
    calls = run_case(library, tmp_path, "store_setup", CODES[name], 5, deadline_s=280)
    assert len(calls) > 10
