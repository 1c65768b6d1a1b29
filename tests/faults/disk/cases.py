"""What runs in a process with failing writes; each case is called by its name.

``each_write_of`` lets the first, the second, … write of a piece of work fail, until none is left
to fail. The work must say so in words, leave nothing behind, and succeed when it is repeated.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from sqlalchemy import select

from appliance import log as node_log
from appliance import seal
from appliance.compute.attic import set_aside
from appliance.datapath import dnsmasq
from appliance.datapath.role import _token_key
from appliance.errors import AnynodeError, Unavailable
from appliance.images.cache import ImageCache
from appliance.images.disk import create_overlay
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.journal import Journal
from appliance.model import (
    ImageRef,
    InjectionRequest,
    InstanceMetadata,
    NetworkSpec,
    PortSpec,
)
from appliance.node_folders import remembered_id
from appliance.store import Store, migrations, schema
from appliance.world import World
from tests.faults.disk.shim import Disk

MIB = 1 << 20
CAUSES = {
    errno.EIO: (
        "Input/output error",
        "disk I/O error",
        "unable to open database file",
        "attempt to write a readonly database",
    ),
    errno.ENOSPC: (
        "No space left on device",
        "database or disk is full",
        "disk I/O error",
        "unable to open database file",
        "attempt to write a readonly database",
    ),
    errno.EROFS: (
        "Read-only file system",
        "disk I/O error",
        "unable to open database file",
        "attempt to write a readonly database",
    ),
}
"""How the causes are worded, by libc and by SQLite."""

Case = Callable[..., Any]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A value for a journal."""

    text: str


def main(arguments: list[str]) -> None:
    """Run a case and print its answer."""
    name, folder, values = arguments
    answer = cast(Case, globals()[name])(Path(folder), *json.loads(values))
    sys.stdout.flush()
    print(json.dumps(answer))


def several(folder: Path, names: list[str], code: int) -> dict[str, Any]:
    """Run several cases, each in a folder of its own; return each answer, or how it failed."""
    answers: dict[str, Any] = {}
    for name in names:
        (folder / name).mkdir()
        try:
            answers[name] = cast(Case, globals()[name])(folder / name, code)
        except Exception:
            answers[name] = traceback.format_exc()
    return answers


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder with their contents; SQLite's own files beside are left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "-journal"))
    }


def each_write_of(
    make: Callable[[Path], Any],
    *,
    where: Path,
    text: str,
    code: int,
    is_database: bool = False,
    has_parts: bool = False,
    step: int = 1,
    prepare: Callable[[Path], object] = lambda folder: None,
) -> list[str]:
    """Let each write of ``make`` fail once, in a fresh folder each; return the calls that failed.

    ``make`` is called three times: with the fault, again, and once more. It raises an
    :class:`AnynodeError` that names the cause, or has done its work in spite of the fault.
    """
    disk = Disk()
    calls: list[str] = []
    is_store = make.__qualname__.startswith("store")
    for nth in range(1, 500, step):
        folder = where / f"{nth}"
        folder.mkdir(parents=True)
        prepare(folder)
        before = tree(folder)
        failure: AnynodeError | None = None
        with disk.failing(f"/{nth}/{text}", code, nth=nth, times=1):
            try:
                make(folder)
            except AnynodeError as error:
                failure = error
            hits, last = disk.hits, disk.last
        if not hits:
            assert failure is None
            assert calls, "nothing was written at all"
            return calls
        call, path = last.split(" ", 1)
        calls.append(f"{call} {Path(path).name}")
        if failure is not None:
            words = str(failure)
            assert any(cause in words for cause in CAUSES[code]), (last, words)
            assert is_store or str(folder) in words, (last, words)
            left = tree(folder).keys() - before.keys()
            # A whole file may be there whose name was perhaps not brought to the disk.
            is_whole_left = has_parts or (call == "fsync" and Path(path).is_dir())
            if call != "unlink":
                assert not [name for name in left if Path(name).name.startswith(".")], (last, left)
            if call != "unlink" and not is_database and not is_whole_left:
                assert tree(folder) == before, (last, left, words)
        elif not is_database:
            harmless = ("fchmod", "utimensat", "fsync", "unlink")
            assert call in harmless, f"{last} went unnoticed"
        first = make(folder)
        assert make(folder) == first, last
    raise AssertionError(f"there is no end of writes: {calls[-5:]}")


def image_import(folder: Path, code: int) -> list[str]:
    """Import an image into the store."""
    source = folder / "source.raw"
    source.write_bytes(os.urandom(600 << 10))

    def make(where: Path) -> str:
        store = ImageStore(where / "images")
        stored = store.import_file(source, "raw", ImageLimits())
        assert store.verify(stored.sha256).read_bytes() == source.read_bytes()
        assert [file.sha256 for file in store.list()] == [stored.sha256]
        return stored.sha256

    return each_write_of(make, where=folder / "x", text="images", code=code)


class _Peer:
    """Another node that has an image."""

    name = "peer"

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, image: ImageRef) -> Iterator[bytes]:
        for at in range(0, len(self._content), MIB):
            yield self._content[at : at + MIB]


def cache_fetch(folder: Path, code: int) -> list[str]:
    """Fetch an image into the cache."""
    source = folder / "source.raw"
    source.write_bytes(os.urandom(600 << 10))
    stored = ImageStore(folder / "there").import_file(source, "raw", ImageLimits())
    peer = _Peer(source.read_bytes())

    def make(where: Path) -> str:
        cache = ImageCache(ImageStore(where / "images"))
        path = cache.fetch(stored.ref("ami-1"), [peer])
        assert path.read_bytes() == source.read_bytes()
        return path.name

    return each_write_of(make, where=folder / "x", text="images", code=code, has_parts=True)


def overlay(folder: Path, code: int) -> list[str]:
    """Make an instance's disk."""
    base = folder / "base.raw"
    base.write_bytes(os.urandom(MIB))

    def make(where: Path) -> int:
        return create_overlay(where / "disk-0.qcow2", base, "raw", 1 << 30)

    return each_write_of(make, where=folder / "x", text="", code=code)


def config_disk(folder: Path, code: int) -> list[str]:
    """Make an instance's config disk."""
    from anynode_injection_configdrive import ConfigDrive, Settings

    from appliance.model import DiskAttachment

    drive = ConfigDrive(Settings())

    def make(where: Path) -> str:
        metadata = InstanceMetadata(
            instance_id="i-0123456789abcdef0",
            project_id="1",
            reservation_id="r-1",
            launch_index=0,
            image_id="ami-1",
            instance_type="t2.nano",
            zone="a",
            region="r",
            hostname="h",
        )
        request = InjectionRequest(
            instance_id=metadata.instance_id,
            directory=str(where),
            root_disk=DiskAttachment(path="/x", format="qcow2", target="vda"),
            metadata=metadata,
            networks=(),
            ports=(),
            image_properties={},
        )
        return drive.injection_inject(request).summary

    return each_write_of(make, where=folder / "x", text="", code=code)


def journal(folder: Path, code: int) -> list[str]:
    """Open a journal and write to it."""

    def make(where: Path) -> dict[str, Any]:
        made = Journal(where / "compute.sqlite")
        try:
            made.put("a", "1", Note(text="one"))
            made.change([("a", "2", Note(text="two" * 3000)), ("a", "3", None)])
            return msgspec.to_builtins(made.all("a", Note))  # type: ignore[no-any-return]
        finally:
            made.close()

    return each_write_of(make, where=folder / "x", text="", code=code, is_database=True)


ROW = {
    "id": "m",
    "topic": "t",
    "lane": "",
    "kind": "k",
    "body": b"x" * 20_000,
    "created_at": 1.0,
}


def store(folder: Path, code: int) -> list[str]:
    """Open a store and write to it."""

    def url(where: Path) -> str:
        return f"sqlite:///{where / 'store.sqlite'}"

    def prepare(where: Path) -> None:
        made = Store(url(where), World())
        schema.metadata.create_all(made.engine)
        made.close()

    def make(where: Path) -> int:
        made = Store(url(where), World())
        try:
            made.transaction(lambda tx: tx.execute(schema.outbox.delete()))
            made.transaction(lambda tx: tx.execute(schema.outbox.insert(), [ROW]))
            return made.read(lambda tx: len(tx.execute(schema.outbox.select()).all()))
        finally:
            made.close()

    return each_write_of(
        make, where=folder / "x", text="", code=code, is_database=True, prepare=prepare
    )


def store_setup(folder: Path, code: int, step: int) -> list[str]:
    """Make the tables of a new store; each step-th write fails, for making them takes its time."""

    def make(where: Path) -> bool:
        made = Store(f"sqlite:///{where / 'store.sqlite'}", World())
        try:
            migrations.upgrade(made)
            return made.read(lambda tx: tx.execute(schema.outbox.select()).all() == [])
        finally:
            made.close()

    return each_write_of(make, where=folder / "x", text="", code=code, is_database=True, step=step)


def store_that_stays_open(folder: Path, code: int) -> list[str]:
    """Write to a store that is open while its disk fails, and go on when the disk is well."""
    made = Store(f"sqlite:///{folder / 'store.sqlite'}", World())
    schema.metadata.create_all(made.engine)
    disk, failures = Disk(), []

    def ids() -> set[str]:
        return set(made.read(lambda tx: tx.execute(select(schema.outbox.c.id)).scalars()))

    def put(number: int) -> None:
        row = {**ROW, "id": f"{number}"}
        made.transaction(lambda tx: tx.execute(schema.outbox.insert(), [row]))

    acknowledged = set()
    for number in range(1, 41):
        with disk.failing("/store.sqlite", code, nth=number % 8 + 1):
            try:
                put(number)
            except Unavailable as error:
                failures.append(str(error))
            else:
                acknowledged.add(f"{number}")
            assert ids() == acknowledged, "who reads is answered, whatever the disk refuses"
        assert ids() == acknowledged
        put(1000 + number)
        acknowledged.add(f"{1000 + number}")
    made.close()
    assert len(failures) > 10
    return failures


def node_id(folder: Path, code: int) -> list[str]:
    """Make the id of a node."""
    return each_write_of(
        lambda where: remembered_id(where / "node_id", World()),
        where=folder / "x",
        text="",
        code=code,
    )


def token_key(folder: Path, code: int) -> list[str]:
    """Make the key of the metadata service's tokens."""
    return each_write_of(
        lambda where: _token_key(where).hex(), where=folder / "x", text="", code=code
    )


def seal_key(folder: Path, code: int) -> list[str]:
    """Make the key that seals secrets."""

    def make(where: Path) -> str:
        keys = seal.load(seal.key_path(where))
        assert keys.open(keys.close(b"secret", "x"), "x") == b"secret"
        return seal.key_path(where).read_text()

    return each_write_of(make, where=folder / "x", text="", code=code)


NETWORK = NetworkSpec(
    network_id="subnet-0123456789abcdef0",
    vpc_id="vpc-0123456789abcdef0",
    type="flatdhcp",
    cidr="10.64.0.0/24",
    gateway="10.64.0.1",
    bridge="anbr0",
    domain="local-1.internal",
)
PORT = PortSpec(
    port_id="eni-0123456789abcdef0",
    instance_id="i-0123456789abcdef0",
    device_index=0,
    mac="06:a0:00:00:00:01",
    network_id=NETWORK.network_id,
    addresses=("10.64.0.4",),
    hostname="ip-10-64-0-4",
    group_ids=(),
)


def lease(folder: Path, code: int) -> list[str]:
    """Write a port's lease and names."""

    def make(where: Path) -> bool:
        places = dnsmasq.Places(private=where / "private", reachable=where / "reachable")
        try:
            dnsmasq.add_port(NETWORK, PORT, places)
        except AnynodeError as error:
            # None runs here; the port is known to the next one.
            if "No DHCP server runs" not in str(error):
                raise
        return (places.leases / PORT.port_id).exists() and (places.names / PORT.port_id).exists()

    return each_write_of(make, where=folder / "x", text="", code=code, has_parts=True)


def network_record(folder: Path, code: int) -> list[str]:
    """Write the record of a network plugin."""
    from appliance.datapath.network_record import RecordFile

    def make(where: Path) -> list[str]:
        record = RecordFile(where / "networks.json")
        record.write(record.value.with_network(NETWORK))
        record.write(record.value.with_port(PORT.port_id, NETWORK.network_id))
        return sorted(RecordFile(where / "networks.json").value.ports)

    return each_write_of(make, where=folder / "x", text="", code=code, has_parts=True)


def attic(folder: Path, code: int) -> list[str]:
    """Set an instance's files aside."""

    def make(where: Path) -> bool:
        files = where / "instances" / "i-1"
        aside = where / "attic"
        if not aside.exists() or not any(aside.iterdir()):
            files.mkdir(parents=True, exist_ok=True)
        set_aside(where, files)
        return not files.exists()

    return each_write_of(make, where=folder / "x", text="attic", code=code)


def log_lines(folder: Path, code: int) -> dict[str, Any]:
    """Log while the log cannot be written: the program goes on, and so does the log later."""
    disk, path = Disk(), folder / "log" / "node.log"
    node_log.to_file(path, "INFO")
    logger = logging.getLogger("node")
    logger.info("before")
    with disk.failing("/log/", code):
        for number in range(100):
            logger.error("lost %d", number, exc_info=ValueError("x"))
        hits = disk.hits
    logger.info("after")
    lines = path.read_text().splitlines()
    assert "before" in lines[0]
    assert "after" in lines[-1]
    return {"hits": hits, "lines": len(lines)}
