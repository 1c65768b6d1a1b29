from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]
from anynode_injection_configdrive.contents import ContentRules, files_of
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InputError, Unavailable
from appliance.hooks import Injection
from appliance.model import DiskAttachment, InjectionRequest, NetworkSpec, PortSpec
from appliance.testing.injection import CANARY, InjectionContract, make_injection_request

RULES = ContentRules(static_network_types=("flat",))
DISK = DiskAttachment(path="/nowhere/disk", format="qcow2", target="vda")


def read_disk(path: Path, names: str = "-R") -> dict[str, bytes]:
    """Return the files of an ISO by path, as isoinfo reads them."""

    def isoinfo(*words: str) -> bytes:
        command = ["isoinfo", "-i", str(path), names, *words]
        return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout

    paths = isoinfo("-f").decode().split("\n")
    files = {each: isoinfo("-x", each) for each in paths if each}
    return {each.removeprefix("/"): content for each, content in files.items() if content}


def changed(request: InjectionRequest, **fields: Any) -> InjectionRequest:
    return msgspec.structs.replace(request, **fields)


@pytest.mark.skipif(not shutil.which("isoinfo"), reason="isoinfo is not installed")
class TestDisk(InjectionContract, plugin="configdrive"):
    def test_nocloud(self, driver: Injection, request_: InjectionRequest) -> None:
        result = driver.inject(request_)
        assert result.summary == "Config disk cidata with a key and user data."
        (disk,) = result.disks
        assert (disk.format, disk.device, disk.target) == ("raw", "disk", "vdz")
        assert disk.is_read_only
        files = read_disk(Path(disk.path))
        assert set(files) == {"meta-data", "user-data", "network-config"}
        assert files["user-data"] == f"#!/bin/sh\necho {CANARY}\n".encode()
        metadata = yaml.safe_load(files["meta-data"])
        assert metadata["instance-id"] == request_.instance_id
        assert metadata["local-hostname"] == "ip-10-64-0-5"
        assert metadata["public-keys"] == [request_.metadata.public_key]
        network = yaml.safe_load(files["network-config"])
        assert network == {
            "version": 2,
            "ethernets": {
                "eth0": {
                    "match": {"macaddress": "06:a0:00:00:00:05"},
                    "set-name": "eth0",
                    "mtu": 1500,
                    "dhcp4": True,
                }
            },
        }

    def test_config_drive(self, driver: Injection, request_: InjectionRequest) -> None:
        request = changed(request_, image_properties={"config-drive": "config-2"})
        (disk,) = driver.inject(request).disks
        files = read_disk(Path(disk.path))
        assert set(files) == {
            "openstack/latest/meta_data.json",
            "openstack/latest/network_data.json",
            "openstack/latest/user_data",
            "ec2/latest/meta-data.json",
            "ec2/latest/user-data",
        }
        metadata = json.loads(files["openstack/latest/meta_data.json"])
        assert metadata["uuid"] == request_.instance_id
        assert metadata["public_keys"] == {"laptop": request_.metadata.public_key}
        ec2 = json.loads(files["ec2/latest/meta-data.json"])
        assert ec2["local-ipv4"] == "10.64.0.5"
        assert ec2["public-keys"]["0"]["openssh-key"] == request_.metadata.public_key
        assert files["ec2/latest/user-data"] == files["openstack/latest/user_data"]

    @pytest.mark.parametrize("kind", ["cidata", "config-2"])
    def test_label_and_names_for_every_reader(
        self, driver: Injection, request_: InjectionRequest, kind: str
    ) -> None:
        request = changed(request_, image_properties={"config-drive": kind})
        (disk,) = driver.inject(request).disks
        label = Path(disk.path).read_bytes()[32768 + 40 : 32768 + 72]
        assert label.decode().strip() == kind
        assert Path(disk.path).stat().st_size % 2048 == 0
        assert read_disk(Path(disk.path), "-J") == read_disk(Path(disk.path), "-R")

    def test_no_user_data_is_an_empty_configuration(
        self, driver: Injection, directory: Path, root_disk: DiskAttachment
    ) -> None:
        result = driver.inject(make_injection_request(directory, root_disk, public_key=""))
        assert result.summary == "Config disk cidata with no key and no user data."
        files = read_disk(Path(result.disks[0].path))
        assert files["user-data"].startswith(b"#cloud-config\n")
        assert yaml.safe_load(files["user-data"]) == {}
        assert yaml.safe_load(files["meta-data"])["public-keys"] == []

    def test_right_disk_is_left_alone_and_wrong_one_replaced(
        self, driver: Injection, request_: InjectionRequest
    ) -> None:
        path = Path(driver.inject(request_).disks[0].path)
        first = path.stat()
        driver.inject(request_)
        assert path.stat().st_ino == first.st_ino
        assert path.stat().st_mtime_ns == first.st_mtime_ns
        metadata = msgspec.structs.replace(request_.metadata, hostname="other")
        driver.inject(changed(request_, metadata=metadata))
        assert b'"other"' in read_disk(path)["meta-data"]
        path.write_bytes(path.read_bytes()[:1000])
        driver.inject(request_)
        assert b'"ip-10-64-0-5"' in read_disk(path)["meta-data"]

    def test_what_is_in_the_way_is_not_followed(
        self, driver: Injection, request_: InjectionRequest, tmp_path: Path
    ) -> None:
        victim = tmp_path / "others" / "keep"
        directory = Path(request_.directory)
        for name in ("config.iso", ".config.iso.partial"):
            (directory / name).symlink_to(victim)
        driver.inject(request_)
        assert victim.read_text() == "theirs"
        assert not (directory / "config.iso").is_symlink()
        assert sorted(path.name for path in directory.iterdir()) == ["config.iso", "disk.raw"]

    def test_missing_directory_is_a_sentence(
        self, driver: Injection, request_: InjectionRequest, tmp_path: Path
    ) -> None:
        with pytest.raises(Unavailable, match="Could not write"):
            driver.inject(changed(request_, directory=str(tmp_path / "missing")))

    def test_full_disk_leaves_nothing(
        self,
        driver: Injection,
        request_: InjectionRequest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="No space left"):
            driver.inject(request_)
        assert [path.name for path in Path(request_.directory).iterdir()] == ["disk.raw"]


def files_for(
    request: InjectionRequest, *, static: bool = False, kind: str = "cidata"
) -> dict[str, Any]:
    properties = {"config-drive-network": "static" if static else "dhcp", "config-drive": kind}
    files = files_of(changed(request, image_properties=properties), RULES)
    return {name: yaml.safe_load(content) for name, content in files.items() if content[:1] == b"{"}


@pytest.fixture
def two_cards(tmp_path: Path) -> InjectionRequest:
    """A request with two cards, the first one with an IPv6 address too."""
    request = make_injection_request(tmp_path, DISK)
    first = msgspec.structs.replace(request.ports[0], addresses=("10.64.0.5", "fd00::5"))
    network = msgspec.structs.replace(
        request.networks[0], cidr6="fd00::/64", gateway6="fd00::1", mtu=1450
    )
    second = PortSpec(
        port_id="eni-2",
        instance_id=request.instance_id,
        device_index=1,
        mac="06:A0:00:00:00:06",
        network_id="subnet-2",
        addresses=("10.65.0.5", "10.65.0.6"),
        hostname="h",
        group_ids=(),
    )
    other = NetworkSpec(
        network_id="subnet-2",
        vpc_id="vpc-1",
        type="flat",
        cidr="10.65.0.0/20",
        gateway="10.65.0.1",
        bridge="br1",
    )
    return changed(request, ports=(second, first), networks=(network, other))


class TestContents:
    def test_static_cards(self, two_cards: InjectionRequest) -> None:
        ethernets = files_for(two_cards, static=True)["network-config"]["ethernets"]
        first, second = ethernets["eth0"], ethernets["eth1"]
        assert first["addresses"] == ["10.64.0.5/24", "fd00::5/64"]
        assert first["mtu"] == 1450
        assert first["routes"] == [
            {"to": "0.0.0.0/0", "via": "10.64.0.1"},
            {"to": "::/0", "via": "fd00::1"},
        ]
        assert first["nameservers"]["addresses"] == ["10.64.0.1"]
        assert second["match"] == {"macaddress": "06:a0:00:00:00:06"}
        assert second["addresses"] == ["10.65.0.5/20", "10.65.0.6/20"]
        assert second["routes"] == []

    def test_dhcp_cards(self, two_cards: InjectionRequest) -> None:
        ethernets = files_for(two_cards)["network-config"]["ethernets"]
        assert ethernets["eth0"]["dhcp4"]
        assert ethernets["eth0"]["dhcp6"]
        assert ethernets["eth1"]["dhcp4-overrides"] == {"route-metric": 200}
        assert "addresses" not in ethernets["eth1"]

    def test_type_of_the_network_decides_when_the_image_does_not(
        self, two_cards: InjectionRequest
    ) -> None:
        files = files_of(two_cards, RULES)
        ethernets = yaml.safe_load(files["network-config"])["ethernets"]
        assert "dhcp4" in ethernets["eth0"]
        assert "addresses" in ethernets["eth1"]

    def test_network_data(self, two_cards: InjectionRequest) -> None:
        static = files_for(two_cards, static=True, kind="config-2")
        data = static["openstack/latest/network_data.json"]
        assert [link["ethernet_mac_address"] for link in data["links"]] == [
            "06:a0:00:00:00:05",
            "06:a0:00:00:00:06",
        ]
        four, six, *others = data["networks"]
        assert (four["type"], four["netmask"]) == ("ipv4", "255.255.255.0")
        assert four["routes"] == [
            {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.64.0.1"}
        ]
        assert (six["type"], six["ip_address"]) == ("ipv6", "fd00::5")
        assert [route["gateway"] for route in six["routes"]] == ["fd00::1"]
        assert [each["routes"] for each in others] == [[], []]
        assert data["services"] == [{"type": "dns", "address": "10.64.0.1"}]
        asked = files_for(two_cards, kind="config-2")
        kinds = {each["type"] for each in asked["openstack/latest/network_data.json"]["networks"]}
        assert kinds == {"ipv4_dhcp"}

    @pytest.mark.parametrize("name", ["config-drive", "config-drive-network"])
    def test_unknown_property_lists_the_choices(
        self, two_cards: InjectionRequest, name: str
    ) -> None:
        with pytest.raises(InputError, match=" and "):
            files_of(changed(two_cards, image_properties={name: "floppy"}), RULES)

    def test_broken_base64_does_not_show_it(self, tmp_path: Path) -> None:
        request = make_injection_request(tmp_path, DISK, user_data_base64="c2VjcmV0!")
        with pytest.raises(InputError, match="not base64") as caught:
            files_of(request, RULES)
        assert "c2Vj" not in str(caught.value)

    def test_port_of_no_network(self, two_cards: InjectionRequest) -> None:
        with pytest.raises(InputError, match="unknown network"):
            files_of(changed(two_cards, networks=()), RULES)

    @given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
    def test_yaml_and_json_readers_agree_on_any_text(self, text: str) -> None:
        request = make_injection_request(Path("/nowhere"), DISK, hostname=text, public_key=text)
        content = files_of(request, RULES)["meta-data"]
        assert yaml.safe_load(content) == json.loads(content)
        assert yaml.safe_load(content)["local-hostname"] == text

    @given(user_data=st.binary(min_size=1, max_size=200))
    def test_user_data_is_passed_on_byte_for_byte(self, user_data: bytes) -> None:
        request = make_injection_request(Path("/nowhere"), DISK, user_data=user_data)
        assert base64.b64decode(request.metadata.user_data_base64) == user_data
        assert files_of(request, RULES)["user-data"] == user_data
