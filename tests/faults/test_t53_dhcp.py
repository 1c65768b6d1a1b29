"""T53: whatever users write, nothing of it becomes a directive for DHCP and DNS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from appliance.datapath.dnsmasq import Places, render_config, render_lease, render_names
from appliance.testing.network import HOSTILE_HOSTNAMES
from tests.chain.conftest import quiet_deaths  # noqa: F401
from tests.faults.open_node import MakeOpenNode, OpenNode, open_node  # noqa: F401
from tests.faults.rounds import at_once

pytestmark = pytest.mark.faults("input: DHCP and DNS", quick=True)

LEASE = re.compile(
    r"06:a0(:[0-9a-f]{2}){4},10\.64\.0\.\d{1,3},ip-10-64-0-\d{1,3}\.[a-z0-9.-]{1,200}\n"
)
NAMES = re.compile(r"10\.64\.0\.\d{1,3} ip-10-64-0-\d{1,3}\.[a-z0-9.-]{1,200} ip-10-64-0-\d{1,3}\n")
DIRECTIVES = {
    *("user", "pid-file", "interface", "except-interface", "bind-dynamic", "no-hosts"),
    *("addn-hosts", "domain", "local", "domain-needed", "bogus-priv", "dhcp-authoritative"),
    *("dhcp-ignore-clid", "no-ping", "leasefile-ro", "dhcp-hostsfile", "dhcp-range"),
    "dhcp-option",
}
HOSTILE = (
    *HOSTILE_HOSTNAMES,
    "x\ndhcp-script=/bin/sh",
    "x,set:tag",
    "x#comment",
    "option:6,192.0.2.66",
    "-x",
    "é" * 100,
    "\u200bhidden",
)


@pytest.fixture
def node(open_node: MakeOpenNode) -> OpenNode:  # noqa: F811
    return open_node()


def attempt(call: Any, **parameters: Any) -> Any:
    """Call; a refusal must be the client's fault."""
    try:
        return call(**parameters)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
            raise
        return None


def test_t53_hostile_words_of_users_reach_no_lease(node: OpenNode) -> None:
    launched = []
    for number, word in enumerate(HOSTILE):
        tags = [{"Key": "Name", "Value": word}, {"Key": word or "k", "Value": word}]
        attempt(node.ec2.create_key_pair, KeyName=word or "k", KeyType="ed25519")
        attempt(node.ec2.create_security_group, GroupName=word or "g", Description=word or "d")
        reply = attempt(
            node.ec2.run_instances,
            ImageId=node.image.image_id,
            InstanceType="t2.nano",
            MinCount=1,
            MaxCount=1,
            UserData=f"hostname: {word}",
            ClientToken=f"token-{number}",
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        plain = [{"Key": "Name", "Value": word}]
        reply = reply or attempt(
            node.ec2.run_instances,
            ImageId=node.image.image_id,
            InstanceType="t2.nano",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": plain}],
        )
        if reply:
            launched.append(reply["Instances"][0]["InstanceId"])
    assert len(launched) > len(HOSTILE) / 2
    node.wait_for("running", *launched)
    fake = node.machine.network.node
    (network,) = fake.networks.values()
    ports = [port.lease for port in fake.ports.values()]
    assert len(ports) == len(launched)
    for port in ports:
        assert LEASE.fullmatch(render_lease(network, port)), render_lease(network, port)
        assert NAMES.fullmatch(render_names(network, port)), render_names(network, port)
    places = Places(private=Path("/run/a"), reachable=Path("/run/b"))
    for line in render_config(network, places, "dnsmasq").splitlines():
        assert line.partition("=")[0] in DIRECTIVES, line
    node.assert_clean()


def test_t53_no_two_instances_have_the_same_hostname(node: OpenNode) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "the-same"}]}]
    launched = at_once([lambda: node.launch(5, TagSpecifications=tags)] * 4)
    ids = [one for each in launched if isinstance(each, list) for one in each]
    assert len(ids) == 20
    node.wait_for("running", *ids)
    hostnames = [port.lease.hostname for port in node.machine.network.node.ports.values()]
    assert len(set(hostnames)) == 20
    named = {one["PrivateDnsName"].partition(".")[0] for one in node.describe(*ids).values()}
    assert named == set(hostnames)
