"""The machine around a node: its clock and its disks."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from appliance import verify
from appliance.config import BusSettings
from appliance.model import Finding
from appliance.store.schema import node_status
from appliance.verify import environment, facts
from tests.chain.conftest import MakeChain, make_chain  # noqa: F401
from tests.chain.harness import Chain


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:  # noqa: F811
    made = make_chain()
    made.stop()
    return made


def found(chain: Chain, code: str) -> list[Finding]:
    return [one for one in verify.check(chain.config) if one.code == code]


def set_newest(chain: Chain, seen_at: float) -> None:
    store = facts.open_store(chain.config)
    store.transaction(lambda tx: tx.execute(update(node_status).values(seen_at=seen_at)))
    store.close()


def test_a_clock_that_went_back(chain: Chain) -> None:
    assert found(chain, "N3.CLOCK_BACK") == []
    set_newest(chain, time.time() + 600)
    (finding,) = found(chain, "N3.CLOCK_BACK")
    assert finding.level == "warning"
    assert "s behind the newest heartbeat." in finding.message
    assert 595 < float(finding.message.split()[3]) <= 600
    set_newest(chain, time.time())
    assert found(chain, "N3.CLOCK_BACK") == []


def disk(monkeypatch: pytest.MonkeyPatch, folder: Path, **values: int) -> None:
    """Let the file system of a folder look as given."""
    real = os.statvfs
    names = "f_bsize f_frsize f_blocks f_bfree f_bavail f_files f_ffree f_favail f_flag f_namemax"

    def statvfs(path: Any) -> os.statvfs_result:
        answer = real(path)
        if Path(path) != folder:
            return answer
        return os.statvfs_result(
            [values.get(name, getattr(answer, name)) for name in names.split()]
        )

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_a_disk_that_is_nearly_full(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chain.config.state_dir
    disk(monkeypatch, folder, f_frsize=4096, f_bavail=(1 << 30) // 4096)
    assert found(chain, "N3.DISK_FULL") == []
    disk(monkeypatch, folder, f_frsize=4096, f_bavail=(1 << 30) // 4096 - 1)
    (finding,) = found(chain, "N3.DISK_FULL")
    assert finding.level == "warning"
    assert finding.subject == str(folder)
    assert finding.message == f"{folder} has 1023 MiB left."


def test_a_disk_without_room_for_names(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chain.config.state_dir
    disk(monkeypatch, folder, f_files=1_000_000, f_favail=environment.LEAST_FREE_FILES - 1)
    (finding,) = found(chain, "N3.DISK_FULL")
    assert finding.message == f"The disk of {folder} has room for 999 more files."
    disk(monkeypatch, folder, f_files=0, f_favail=0)
    assert found(chain, "N3.DISK_FULL") == [], "some file systems do not count files"


def test_a_disk_that_may_not_be_written(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chain.config.state_dir
    assert found(chain, "N3.DISK_READ_ONLY") == []
    disk(monkeypatch, folder, f_flag=os.ST_RDONLY)
    (finding,) = found(chain, "N3.DISK_READ_ONLY")
    assert finding.level == "error"
    assert finding.message == f"{folder} is on a read-only disk."


@pytest.mark.parametrize(
    ("url", "nodes", "is_found"),
    [
        ("amqps://broker/anynode", 2, True),
        ("amqps://broker/anynode", 1, False),
        ("local:", 2, False),
    ],
)
def test_instances_beside_what_reaches_the_store(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, url: str, nodes: int, is_found: bool
) -> None:
    monkeypatch.setattr("appliance.verify.services.look_at_broker", lambda *_: iter(()))
    config = msgspec.structs.replace(chain.config, bus=BusSettings(url=url))
    seen = facts.gather(chain.config)
    store = dataclasses.replace(seen.store, seen_at={str(n): time.time() for n in range(nodes)})
    running = dataclasses.replace(seen, store=store, is_running=True)
    codes = {one.code for one in environment.look(config, running)}
    assert ("N1.ROLES_MEET" in codes) == is_found
