"""What the config disk says: pure functions from a request to files.

Sources: cloud-init's pages on NoCloud, ConfigDrive and network configuration version 2.
Everything structured is written as JSON, which is YAML too, so that no value can break out.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from appliance.errors import InputError
from appliance.model import InjectionRequest, InstanceMetadata, NetworkSpec, PortSpec

NOCLOUD = "cidata"
CONFIG_DRIVE = "config-2"

_EMPTY_USER_DATA = b"#cloud-config\n{}\n"
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class ContentRules:
    """Which types of networks have no DHCP."""

    static_network_types: tuple[str, ...]


def label_of(request: InjectionRequest) -> str:
    """Return the label of the disk, by which cloud-init knows its kind.

    :raises InputError: the image asks for a kind that there is not.
    """
    return _property(request.image_properties, "config-drive", (NOCLOUD, CONFIG_DRIVE)) or NOCLOUD


def files_of(request: InjectionRequest, rules: ContentRules) -> dict[str, bytes]:
    """Return the files of the disk by path.

    :raises InputError: the user data is no base64, a network of a port is missing, or an image
        property has a value that there is not.
    """
    if label_of(request) == CONFIG_DRIVE:
        return _config_drive_files(request, rules)
    return {
        "meta-data": _json(_nocloud_metadata(request.metadata)),
        "user-data": _user_data(request.metadata) or _EMPTY_USER_DATA,
        "network-config": _json(_network_config(_cards(request, rules))),
    }


def _config_drive_files(request: InjectionRequest, rules: ContentRules) -> dict[str, bytes]:
    cards = _cards(request, rules)
    files = {
        "openstack/latest/meta_data.json": _json(_openstack_metadata(request.metadata)),
        "openstack/latest/network_data.json": _json(_openstack_network(cards)),
        "ec2/latest/meta-data.json": _json(_ec2_metadata(request.metadata, cards)),
    }
    user_data = _user_data(request.metadata)
    if user_data:
        files["openstack/latest/user_data"] = user_data
        files["ec2/latest/user-data"] = user_data
    return files


def _user_data(metadata: InstanceMetadata) -> bytes:
    try:
        return base64.b64decode(metadata.user_data_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"The user data of instance {metadata.instance_id} is not base64."
        ) from error


def _nocloud_metadata(metadata: InstanceMetadata) -> dict[str, Any]:
    return {
        "instance-id": metadata.instance_id,
        "local-hostname": metadata.hostname,
        "public-keys": [metadata.public_key] if metadata.public_key else [],
        "availability_zone": metadata.zone,
        "region": metadata.region,
        "cloud-name": "anynode",
    }


def _openstack_metadata(metadata: InstanceMetadata) -> dict[str, Any]:
    key_name = metadata.key_name or "default"
    return {
        "uuid": metadata.instance_id,
        "name": metadata.hostname,
        "hostname": metadata.hostname,
        "launch_index": metadata.launch_index,
        "availability_zone": metadata.zone,
        "project_id": metadata.project_id,
        "public_keys": {key_name: metadata.public_key} if metadata.public_key else {},
        "meta": dict(metadata.tags),
    }


def _ec2_metadata(metadata: InstanceMetadata, cards: tuple[_Card, ...]) -> dict[str, Any]:
    addresses = [address for card in cards for address in card.port.addresses if "." in address]
    key_name = metadata.key_name or "default"
    return {
        "ami-id": metadata.image_id,
        "ami-launch-index": metadata.launch_index,
        "hostname": metadata.hostname,
        "instance-id": metadata.instance_id,
        "instance-type": metadata.instance_type,
        "local-hostname": metadata.hostname,
        "local-ipv4": addresses[0] if addresses else None,
        "placement": {"availability-zone": metadata.zone},
        "public-keys": (
            {"0": {"_name": f"0={key_name}", "openssh-key": metadata.public_key}}
            if metadata.public_key
            else {}
        ),
        "reservation-id": metadata.reservation_id,
        "security-groups": list(metadata.security_groups),
    }


@dataclass(frozen=True, kw_only=True)
class _Card:
    """A port with its network, and whether it is told its addresses or asks for them."""

    port: PortSpec
    network: NetworkSpec
    is_static: bool

    @property
    def name(self) -> str:
        return f"eth{self.port.device_index}"

    @property
    def is_first(self) -> bool:
        return self.port.device_index == 0

    def with_prefix(self, address: str) -> str:
        cidr = self.network.cidr6 if ":" in address else self.network.cidr
        return f"{address}/{ip_network(cidr, strict=False).prefixlen}"

    def gateways(self) -> list[str]:
        """Return the gateways of the families that the port has addresses of; only of card 0."""
        families = {ip_address(address).version for address in self.port.addresses}
        known = [each for each in (self.network.gateway, self.network.gateway6) if each]
        return [each for each in known if self.is_first and ip_address(each).version in families]


def _cards(request: InjectionRequest, rules: ContentRules) -> tuple[_Card, ...]:
    networks = {network.network_id: network for network in request.networks}
    forced = _property(request.image_properties, "config-drive-network", ("dhcp", "static"))
    cards = []
    for port in sorted(request.ports, key=lambda port: port.device_index):
        network = networks.get(port.network_id)
        if network is None:
            raise InputError(f"Port {port.port_id} is in the unknown network {port.network_id}.")
        is_static = forced == "static" if forced else network.type in rules.static_network_types
        cards.append(_Card(port=port, network=network, is_static=is_static))
    return tuple(cards)


def _network_config(cards: tuple[_Card, ...]) -> dict[str, Any]:
    """Return network configuration version 2."""
    ethernets = {}
    for card in cards:
        ethernet: dict[str, Any] = {
            "match": {"macaddress": card.port.mac.lower()},
            "set-name": card.name,
            "mtu": card.network.mtu,
        }
        if card.is_static:
            ethernet |= _static_config(card)
        else:
            ethernet |= _dhcp_config(card)
        ethernets[card.name] = ethernet
    return {"version": 2, "ethernets": ethernets}


def _static_config(card: _Card) -> dict[str, Any]:
    return {
        "addresses": [card.with_prefix(address) for address in card.port.addresses],
        "routes": [
            {"to": "::/0" if ":" in gateway else "0.0.0.0/0", "via": gateway}
            for gateway in card.gateways()
        ],
        "nameservers": {
            "addresses": list(card.network.dns),
            "search": [card.network.domain] if card.network.domain else [],
        },
    }


def _dhcp_config(card: _Card) -> dict[str, Any]:
    config: dict[str, Any] = {"dhcp4": True}
    if any(":" in address for address in card.port.addresses):
        config["dhcp6"] = True
    if not card.is_first:
        config["dhcp4-overrides"] = {"route-metric": 100 * (card.port.device_index + 1)}
    return config


def _openstack_network(cards: tuple[_Card, ...]) -> dict[str, Any]:
    links = [
        {
            "id": card.name,
            "type": "phy",
            "ethernet_mac_address": card.port.mac.lower(),
            "mtu": card.network.mtu,
        }
        for card in cards
    ]
    networks = [network for card in cards for network in _openstack_networks(card)]
    servers = dict.fromkeys(
        server for card in cards if card.is_static for server in card.network.dns
    )
    return {
        "links": links,
        "networks": networks,
        "services": [{"type": "dns", "address": server} for server in servers],
    }


def _openstack_networks(card: _Card) -> list[dict[str, Any]]:
    common = {"link": card.name, "network_id": card.network.network_id}
    if not card.is_static:
        return [{**common, "id": f"{card.name}-ipv4", "type": "ipv4_dhcp"}]
    gateways = card.gateways()
    found = []
    for number, address in enumerate(card.port.addresses):
        version = ip_address(address).version
        cidr = card.network.cidr6 if version == 6 else card.network.cidr
        any_network = ip_network("::/0" if version == 6 else "0.0.0.0/0")
        found.append(
            {
                **common,
                "id": f"{card.name}-{number}",
                "type": f"ipv{version}",
                "ip_address": address,
                "netmask": str(ip_network(cidr, strict=False).netmask),
                "dns_nameservers": list(card.network.dns),
                "routes": [
                    {
                        "network": str(any_network.network_address),
                        "netmask": str(any_network.netmask),
                        "gateway": gateway,
                    }
                    for gateway in gateways
                    if ip_address(gateway).version == version
                ],
            }
        )
    return found


def _property(properties: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = properties.get(name, "")
    if value and value not in choices:
        raise InputError(
            f"The image property {name} is {value!r}; there are {' and '.join(choices)}."
        )
    return value


def _json(value: object) -> bytes:
    """Return JSON that every YAML parser reads alike, sorted and ending in a newline.

    YAML forbids or folds a few characters that JSON takes as they are; those are escaped. Others
    stay, because YAML reads the two escapes of JSON for one emoji as two broken characters.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1)
    escaped = _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return escaped.encode() + b"\n"
