"""The demo image's readers of settings: flatten.awk and network.awk, run by this machine's awk."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "image/demo/rootfs/usr/lib/anynode-demo"


def awk(script: str, text: str) -> list[str]:
    done = subprocess.run(
        ["awk", "-f", SCRIPTS / script], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def network(text: str) -> list[str]:
    return awk("network.awk", "\n".join(awk("flatten.awk", text)) + "\n")


def test_yaml_is_flattened() -> None:
    text = """\
# a comment
instance-id: i-1   # another
local-hostname: 'a b'
public-keys:
- ssh-ed25519 AAAA one:two
- "quoted \\" # not a comment"
nested:
  deep:
    - name: x
      list: [1, "two", {k: v}]
    - name: y
script: |
  first
  second
last: true
"""
    assert awk("flatten.awk", text) == [
        "instance-id\ti-1",
        "local-hostname\ta b",
        "public-keys/0\tssh-ed25519 AAAA one:two",
        'public-keys/1\tquoted " # not a comment',
        "nested/deep/0/name\tx",
        "nested/deep/0/list/0\t1",
        "nested/deep/0/list/1\ttwo",
        "nested/deep/0/list/2/k\tv",
        "nested/deep/1/name\ty",
        "script\tfirst second ",
        "last\ttrue",
    ]


def test_json_is_flattened() -> None:
    text = """
    {"uuid": "i-1", "empty": {}, "none": null, "list": [], "\\u0061": [[1], {"b": "x\\ty"}],
     "public_keys": {"mine": "ssh-rsa AAAA a,b}c"}}
    """
    assert awk("flatten.awk", text) == [
        "uuid\ti-1",
        "none\t",
        "a/0/0\t1",
        "a/1/b\tx y",
        "public_keys/mine\tssh-rsa AAAA a,b}c",
    ]


VERSION_2 = """\
network:
  version: 2
  ethernets:
    first:
      match:
        macaddress: "52:54:00:AA:BB:CC"
      mtu: 1450
      addresses:
        - 10.0.0.5/24
        - fd00::5/64
      routes:
        - to: default
          via: 10.0.0.1
        - {to: 10.9.0.0/16, via: 10.0.0.9}
      nameservers: {addresses: [10.0.0.2]}
"""

VERSION_1 = """\
version: 1
config:
- type: physical
  name: eth0
  mac_address: 52:54:00:aa:bb:cc
  mtu: 1450
  subnets:
  - type: static
    address: 10.0.0.5
    netmask: 255.255.255.0
    gateway: 10.0.0.1
- type: nameserver
  address:
  - 10.0.0.2
"""

OPENSTACK = """\
{"links": [{"id": "l0", "type": "phy", "ethernet_mac_address": "52:54:00:AA:BB:CC", "mtu": 1450}],
 "networks": [{"id": "n0", "type": "ipv4", "link": "l0", "ip_address": "10.0.0.5",
   "netmask": "255.255.255.0",
   "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]}],
 "services": [{"type": "dns", "address": "10.0.0.2"}]}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            VERSION_2,
            """\
52:54:00:aa:bb:cc mtu 1450
52:54:00:aa:bb:cc address 10.0.0.5/24
52:54:00:aa:bb:cc address fd00::5/64
52:54:00:aa:bb:cc gateway 10.0.0.1
52:54:00:aa:bb:cc route 10.9.0.0/16 10.0.0.9
52:54:00:aa:bb:cc dns 10.0.0.2""",
        ),
        (
            VERSION_1,
            """\
52:54:00:aa:bb:cc mtu 1450
52:54:00:aa:bb:cc address 10.0.0.5/255.255.255.0
52:54:00:aa:bb:cc gateway 10.0.0.1
any dns 10.0.0.2""",
        ),
        (
            OPENSTACK,
            """\
52:54:00:aa:bb:cc mtu 1450
52:54:00:aa:bb:cc address 10.0.0.5/255.255.255.0
52:54:00:aa:bb:cc gateway 10.0.0.1
any dns 10.0.0.2""",
        ),
        ("version: 2\nethernets:\n  eth0:\n    dhcp4: true\n", ""),
    ],
    ids=["version-2", "version-1", "openstack", "dhcp"],
)
def test_network_descriptions_are_understood(text: str, expected: str) -> None:
    assert network(text) == expected.splitlines()
