"""Contract of injection plugins: ``class TestMine(InjectionContract, plugin="mine"): ...``.

A plugin that changes the root disk overrides the fixture ``root_disk`` with a disk that it can
change.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.errors import AnynodeError
from appliance.hooks import Injection
from appliance.model import (
    DiskAttachment,
    InjectionRequest,
    InstanceMetadata,
    NetworkSpec,
    PortSpec,
)
from appliance.testing.plugin import PluginContract

CANARY = "canary-4f1c9e"
"""Stands in the user data of every request; it may only turn up inside the instance's disks."""

HOSTILE_TEXTS = (
    'quote " and \\ backslash',
    "line\nbreak: {}\n- [",
    "--- # : & * ! | > % @ `",
    "../../../etc/cron.d/x",
    "tab\tand nul\0",
    "\u2028 \x85 \x7f \ufeff",
    "emoji \U0001f600",
    "x" * 4096,
)


def make_injection_request(
    directory: Path, root_disk: DiskAttachment, *, user_data: bytes = b"", **metadata: Any
) -> InjectionRequest:
    """Return a request for an instance with one card; ``metadata`` are fields to change."""
    given: dict[str, Any] = {
        "instance_id": "i-0123456789abcdef0",
        "project_id": "project-1",
        "reservation_id": "r-0123456789abcdef0",
        "launch_index": 0,
        "image_id": "ami-0123456789abcdef0",
        "instance_type": "m1.tiny",
        "zone": "local-1a",
        "region": "local-1",
        "hostname": "ip-10-64-0-5",
        "key_name": "laptop",
        "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPretendKey somebody@laptop",
        "user_data_base64": base64.b64encode(user_data).decode(),
    }
    network = NetworkSpec(
        network_id="subnet-1",
        vpc_id="vpc-1",
        type="flatdhcp",
        cidr="10.64.0.0/24",
        gateway="10.64.0.1",
        bridge="anbr0",
        dns=("10.64.0.1",),
    )
    port = PortSpec(
        port_id="eni-1",
        instance_id=given["instance_id"],
        device_index=0,
        mac="06:a0:00:00:00:05",
        network_id="subnet-1",
        addresses=("10.64.0.5",),
        hostname="ip-10-64-0-5",
        group_ids=(),
    )
    return InjectionRequest(
        instance_id=given["instance_id"],
        directory=str(directory),
        root_disk=root_disk,
        metadata=InstanceMetadata(**(given | metadata)),
        networks=(network,),
        ports=(port,),
    )


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and contents of everything below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def told(driver: Injection, request: InjectionRequest) -> str:
    """Return what the timeline would show: the result, or the sentence of an expected error."""
    try:
        return repr(driver.inject(request))
    except AnynodeError as error:
        return error.message


class InjectionContract(PluginContract):
    """What the compute role relies on, whatever the plugin writes and where."""

    group = "appliance.injection"

    @pytest.fixture
    def driver(self, made: object) -> Injection:
        """Return the plugin as the compute role calls it."""
        return Injection(self.plugin, made)

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Return the directory of the instance; ``tmp_path/others`` is somebody else's."""
        others = tmp_path / "others"
        others.mkdir()
        (others / "keep").write_text("theirs")
        directory = tmp_path / "instances" / "i-0123456789abcdef0"
        directory.mkdir(parents=True)
        return directory

    @pytest.fixture
    def root_disk(self, directory: Path) -> DiskAttachment:
        """Return the instance's own disk."""
        path = directory / "disk.raw"
        path.write_bytes(bytes(1 << 20))
        return DiskAttachment(path=str(path), format="raw", target="vda")

    @pytest.fixture
    def request_(self, directory: Path, root_disk: DiskAttachment) -> InjectionRequest:
        """Return an ordinary request with user data."""
        user_data = f"#!/bin/sh\necho {CANARY}\n".encode()
        return make_injection_request(directory, root_disk, user_data=user_data)

    def test_says_what_was_done(self, driver: Injection, request_: InjectionRequest) -> None:
        assert driver.inject(request_).summary.strip()

    def test_disks_are_usable(self, driver: Injection, request_: InjectionRequest) -> None:
        result = driver.inject(request_)
        targets = [request_.root_disk.target, *(disk.target for disk in result.disks)]
        assert len(targets) == len(set(targets)), "two disks have the same target"
        for disk in result.disks:
            path = Path(disk.path)
            assert path.is_absolute()
            assert path.is_file()
            assert path.parent == Path(request_.directory)
            assert disk.format in ("raw", "qcow2")
            assert disk.device in ("disk", "cdrom")
            assert path.stat().st_mode & 0o007 == 0, "everybody on the node can read secrets"

    def test_answer_and_errors_hold_no_secret(
        self, driver: Injection, request_: InjectionRequest, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        encoded = request_.metadata.user_data_base64
        missing = str(Path(request_.directory) / "missing")
        shown = [
            told(driver, request_),
            told(driver, msgspec.structs.replace(request_, directory=missing)),
            caplog.text,
        ]
        for text in shown:
            assert CANARY not in text
            assert encoded not in text

    def test_safe_to_repeat(self, driver: Injection, request_: InjectionRequest) -> None:
        first = driver.inject(request_)
        before = tree(Path(request_.directory))
        assert driver.inject(request_) == first
        assert tree(Path(request_.directory)) == before

    def test_writes_only_into_the_directory(
        self, driver: Injection, request_: InjectionRequest, tmp_path: Path
    ) -> None:
        before = tree(tmp_path)
        driver.inject(request_)
        inside = str(Path(request_.directory).relative_to(tmp_path))
        after = tree(tmp_path)
        assert {name: each for name, each in after.items() if not name.startswith(inside)} == {
            name: each for name, each in before.items() if not name.startswith(inside)
        }

    def test_remove_leaves_the_root_disk_alone(
        self, driver: Injection, request_: InjectionRequest
    ) -> None:
        driver.inject(request_)
        driver.remove(request_.directory)
        assert [path.name for path in Path(request_.directory).iterdir()] == [
            Path(request_.root_disk.path).name
        ]
        driver.remove(request_.directory)

    def test_remove_of_nothing_is_no_error(self, driver: Injection, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        driver.remove(str(empty))
        driver.remove(str(tmp_path / "missing"))

    def test_inject_after_remove(self, driver: Injection, request_: InjectionRequest) -> None:
        first = driver.inject(request_)
        driver.remove(request_.directory)
        assert driver.inject(request_) == first
        assert all(Path(disk.path).is_file() for disk in first.disks)

    @pytest.mark.parametrize("field", ["hostname", "public_key", "key_name", "zone"])
    @pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
    def test_hostile_text_is_written_or_refused(
        self,
        driver: Injection,
        directory: Path,
        root_disk: DiskAttachment,
        tmp_path: Path,
        field: str,
        text: str,
    ) -> None:
        metadata: dict[str, Any] = {field: text}
        assert told(driver, make_injection_request(directory, root_disk, **metadata))
        assert (tmp_path / "others" / "keep").read_text() == "theirs"

    @pytest.mark.parametrize(
        "user_data",
        [b"", b"\0\xff\xfe binary", b"#cloud-config\n{}\n", b"x" * 16384],
        ids=["none", "binary", "cloud-config", "16 KiB"],
    )
    def test_any_user_data(
        self, driver: Injection, directory: Path, root_disk: DiskAttachment, user_data: bytes
    ) -> None:
        request = make_injection_request(directory, root_disk, user_data=user_data)
        assert driver.inject(request).summary
