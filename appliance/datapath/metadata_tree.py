"""What an instance may read about itself, as EC2's tree of directories and texts; pure."""

from __future__ import annotations

import base64
import ipaddress
import json
import re

from appliance.model import BlockDeviceSpec, InstanceMetadata, NetworkSpec, PortSpec, Value

Tree = dict[str, "Tree | bytes"]
"""A directory: names to directories or contents."""

VERSIONS = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "latest",
)
"""The versions that clients ask for; all of them show the same tree."""

_TAG_NAME = re.compile(r"[A-Za-z0-9+\-=._:@]{1,128}")


class Subject(Value, frozen=True, kw_only=True):
    """An instance as its metadata shows it.

    ``ports`` are at least the one that asks, ``networks`` at least those of the ports;
    ``block_devices`` begin with the root disk, and none leaves them out.
    """

    metadata: InstanceMetadata
    ports: tuple[PortSpec, ...]
    networks: tuple[NetworkSpec, ...]
    block_devices: tuple[BlockDeviceSpec, ...] = ()


def render(subject: Subject) -> Tree:
    """Return what lies below a version."""
    user_data = subject.metadata.user_data_base64
    tree: Tree = {
        "dynamic": {"instance-identity": {"document": _text(_identity_document(subject))}},
        "meta-data": _meta_data(subject),
    }
    if user_data:
        tree["user-data"] = base64.b64decode(user_data)
    return tree


def listing(tree: Tree, path: tuple[str, ...], key_name: str) -> bytes:
    """Return the directory at a path as EC2 shows it: a name per line, directories with a slash.

    Keys are shown as ``0=name``; a version's own directory shows no slashes.
    """
    if path == ("meta-data", "public-keys"):
        return _text("\n".join(f"{number}={key_name}" for number in tree))
    if not path:
        return _text("\n".join(tree))
    return _text(
        "\n".join(f"{name}/" if isinstance(item, dict) else name for name, item in tree.items())
    )


def find(tree: Tree, path: tuple[str, ...]) -> Tree | bytes | None:
    """Return what lies at a path; ``None`` when nothing does."""
    item: Tree | bytes | None = tree
    for name in path:
        if not isinstance(item, dict):
            return None
        item = item.get(name)
    return item


def _meta_data(subject: Subject) -> Tree:
    about = subject.metadata
    first = min(subject.ports, key=lambda port: port.device_index)
    network = _network_of(subject, first)
    hostname = _full_name(about.hostname, network)
    tree: Tree = {
        "ami-id": _text(about.image_id),
        "ami-launch-index": _text(str(about.launch_index)),
        "ami-manifest-path": _text("(unknown)"),
        "block-device-mapping": _block_devices(subject.block_devices),
        "hostname": _text(hostname),
        "instance-action": _text("none"),
        "instance-id": _text(about.instance_id),
        "instance-life-cycle": _text("on-demand"),
        "instance-type": _text(about.instance_type),
        "kernel-id": _text(about.kernel_id),
        "local-hostname": _text(hostname),
        "local-ipv4": _text("".join(_addresses(first, 4)[:1])),
        "mac": _text(first.mac),
        "network": {"interfaces": {"macs": _cards(subject)}},
        "placement": {
            "availability-zone": _text(about.zone),
            "region": _text(about.region),
        },
        "public-keys": {"0": {"openssh-key": key}} if (key := _key(about.public_key)) else {},
        "ramdisk-id": _text(about.ramdisk_id),
        "reservation-id": _text(about.reservation_id),
        "security-groups": _text("\n".join(about.security_groups)),
        "services": {"domain": _text(network.domain), "partition": _text("aws")},
        "tags": {"instance": tags} if (tags := _tags(about.tags)) else {},
    }
    return {name: item for name, item in tree.items() if item or name == "security-groups"}


def _cards(subject: Subject) -> Tree:
    about = subject.metadata
    cards: Tree = {}
    for port in sorted(subject.ports, key=lambda one: one.device_index):
        network = _network_of(subject, port)
        card: Tree = {
            "device-number": _text(str(port.device_index)),
            "interface-id": _text(port.port_id),
            "ipv6s": _text("\n".join(_addresses(port, 6))),
            "local-hostname": _text(_full_name(port.hostname, network)),
            "local-ipv4s": _text("\n".join(_addresses(port, 4))),
            "mac": _text(port.mac),
            "owner-id": _text(about.project_id),
            "security-group-ids": _text("\n".join(port.group_ids)),
            "security-groups": _text("\n".join(about.security_groups)),
            "subnet-id": _text(network.network_id),
            "subnet-ipv4-cidr-block": _text(network.cidr),
            "subnet-ipv6-cidr-blocks": _text(network.cidr6),
            "vpc-id": _text(network.vpc_id),
        }
        cards[port.mac] = {name: item for name, item in card.items() if item}
    return cards


def _identity_document(subject: Subject) -> str:
    about = subject.metadata
    first = min(subject.ports, key=lambda port: port.device_index)
    document = {
        "accountId": about.project_id,
        "architecture": "x86_64",
        "availabilityZone": about.zone,
        "imageId": about.image_id,
        "instanceId": about.instance_id,
        "instanceType": about.instance_type,
        "kernelId": about.kernel_id or None,
        "privateIp": next(iter(_addresses(first, 4)), None),
        "ramdiskId": about.ramdisk_id or None,
        "region": about.region,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2)


def _block_devices(devices: tuple[BlockDeviceSpec, ...]) -> Tree:
    if not devices:
        return {}
    root = _text(devices[0].device_name)
    more = {f"ebs{number}": _text(one.device_name) for number, one in enumerate(devices[1:], 1)}
    return {"ami": root, **more, "root": root}


def _key(public_key: str) -> bytes:
    return _text(f"{public_key.strip()}\n") if public_key.strip() else b""


def _tags(tags: dict[str, str]) -> Tree:
    """Return the tags whose names can be a part of a path, as EC2 requires."""
    return {
        name: _text(value)
        for name, value in tags.items()
        if _TAG_NAME.fullmatch(name) and name not in (".", "..", "_index")
    }


def _network_of(subject: Subject, port: PortSpec) -> NetworkSpec:
    return next(one for one in subject.networks if one.network_id == port.network_id)


def _full_name(hostname: str, network: NetworkSpec) -> str:
    return hostname if "." in hostname else f"{hostname}.{network.domain}"


def _addresses(port: PortSpec, version: int) -> list[str]:
    return [text for text in port.addresses if ipaddress.ip_address(text).version == version]


def _text(text: str) -> bytes:
    return text.encode()
