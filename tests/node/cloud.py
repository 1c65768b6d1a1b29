"""A user of the node: boto3, and SSH to what was launched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig

from appliance.model import tap_name
from tests.node.place import GATEWAY, Place
from tests.rig import wait_for

BOOT_S = 180
STATE_S = 120
LIVE_S = 5.0
"""Seconds within which a change of rules is in force."""

READY = "anynode-demo: ready:"


class Cloud:
    """The EC2 API of a node, called from inside its network namespace."""

    def __init__(self, place: Place, access_key: dict[str, str]) -> None:
        self.place = place
        self.secret = access_key["secret_access_key"]
        self.client = boto3.client(
            "ec2",
            region_name=access_key["region"],
            endpoint_url=access_key["endpoint_url"],
            aws_access_key_id=access_key["access_key_id"],
            aws_secret_access_key=self.secret,
            config=ClientConfig(proxies={}, retries={"total_max_attempts": 1}),
        )
        self.image_id = ""
        self.key_path = place.rig.directory / "key.pem"

    def __getattr__(self, action: str) -> Callable[..., Any]:
        """Return an action of the API under boto3's name for it."""
        method = getattr(self.client, action)
        return lambda **parameters: self.place.inside(method, **parameters)

    def make_key_pair(self, name: str) -> None:
        """Make a key pair and keep its private half."""
        material = self.create_key_pair(KeyName=name)["KeyMaterial"]
        self.key_path.touch(mode=0o600)
        self.key_path.write_text(material)

    def make_group(self, name: str, *permissions: dict[str, Any]) -> str:
        """Make a security group that lets the node in by SSH, and what is given; return its id."""
        group_id: str = self.create_security_group(GroupName=name, Description=name)["GroupId"]
        rules = [tcp(22, f"{GATEWAY}/32"), *permissions]
        self.authorize_security_group_ingress(GroupId=group_id, IpPermissions=rules)
        return group_id

    @contextmanager
    def allowing(self, group_id: str, *permissions: dict[str, Any]) -> Iterator[None]:
        """Let these in until the block ends."""
        rules = {"GroupId": group_id, "IpPermissions": list(permissions)}
        self.authorize_security_group_ingress(**rules)
        try:
            yield
        finally:
            self.revoke_security_group_ingress(**rules)

    def launch(self, **more: Any) -> Instance:
        """Ask for one small instance and return it, whatever its state is."""
        parameters = {
            "ImageId": self.image_id,
            "InstanceType": "m1.tiny",
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": "tests",
            **more,
        }
        reservation = self.run_instances(**parameters)
        return Instance(self, reservation["Instances"][0]["InstanceId"])

    def wait(self, name: str, instance_id: str, deadline_s: int = STATE_S) -> None:
        """Wait with one of boto3's own waiters."""
        self.place.inside(
            self.client.get_waiter(name).wait,
            InstanceIds=[instance_id],
            WaiterConfig={"Delay": 1, "MaxAttempts": deadline_s},
        )


class Instance:
    """An instance as its owner sees it."""

    def __init__(self, cloud: Cloud, instance_id: str) -> None:
        self.cloud = cloud
        self.place = cloud.place
        self.instance_id = instance_id
        self._master: subprocess.Popen[bytes] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what DescribeInstances says."""
        answer = self.cloud.describe_instances(InstanceIds=[self.instance_id])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    @property
    def state(self) -> str:
        """The state's name."""
        return str(self.describe()["State"]["Name"])

    @property
    def address(self) -> str:
        """The first address."""
        return str(self.describe()["PrivateIpAddress"])

    @property
    def port_id(self) -> str:
        """The id of the first card."""
        return str(self.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"])

    @property
    def tap(self) -> str:
        """The name of the first card's tap on the node, whether it is there or not."""
        return tap_name(self.port_id)

    def wait_state(self, state: str, deadline_s: float = STATE_S) -> dict[str, Any]:
        """Wait for a state and return the description.

        :raises AssertionError: it was terminated instead.
        """

        def reached() -> dict[str, Any] | None:
            found = self.describe()
            name = found["State"]["Name"]
            assert name == state or name != "terminated", found.get("StateReason")
            return found if name == state else None

        found: dict[str, Any] = wait_for(reached, deadline_s, f"{self.instance_id} to be {state}")
        return found

    def wait_end(self) -> dict[str, Any]:
        """Wait until it is terminated and return the description."""
        wait_for(lambda: self.state == "terminated", STATE_S, f"{self.instance_id} to end")
        return self.describe()

    def console(self) -> str:
        """Return the serial output that the API gives."""
        return str(self.cloud.get_console_output(InstanceId=self.instance_id).get("Output") or "")

    def boots(self) -> int:
        """Return how often the instance has come up, as its console tells."""
        return self.console().count(READY)

    def wait_booted(self, boots: int = 1) -> None:
        """Wait until it has come up so often and lets in by SSH."""
        wait_for(lambda: self.boots() >= boots, BOOT_S, f"boot {boots} of {self.instance_id}")
        self.connect()

    def connect(self) -> None:
        """Open one SSH connection, through which all commands go from now on."""
        self.disconnect()
        path = self._socket
        path.unlink(missing_ok=True)

        def connected() -> bool:
            if self._master is None or self._master.poll() is not None:
                # What it says while it still cannot get in is no news.
                self._master = self.place.rig.popen(
                    ["ssh", *self._options(), "-M", "-N", f"root@{self.address}"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            return path.exists()

        wait_for(connected, BOOT_S, f"SSH to {self.instance_id}")

    def bring_up(self) -> None:
        """Make sure that it runs and lets in by SSH: start it if it is stopped."""
        is_settled = ("running", "stopped", "terminated")
        wait_for(lambda: self.state in is_settled, STATE_S, f"{self.instance_id} to settle")
        if self.state == "stopped":
            boots = self.boots()
            self.cloud.start_instances(InstanceIds=[self.instance_id])
            self.wait_state("running")
            self.wait_booted(boots + 1)
        elif self._master is None or self._master.poll() is not None:
            self.connect()

    def disconnect(self) -> None:
        """Close the SSH connection."""
        if self._master is not None and self._master.poll() is None:
            self.place.rig.signal(self._master)
            self._master.wait(10)
        self._master = None

    @property
    def _socket(self) -> Path:
        return self.place.rig.directory / f"{self.instance_id}.ssh"

    def _options(self) -> list[str]:
        options = (
            "StrictHostKeyChecking=no UserKnownHostsFile=/dev/null BatchMode=yes LogLevel=ERROR "
            "IdentitiesOnly=yes ConnectTimeout=5 ServerAliveInterval=2 ServerAliveCountMax=3 "
            f"IdentityFile={self.cloud.key_path} ControlPath={self._socket}"
        )
        return ["-F", "none", *(word for one in options.split() for word in ("-o", one))]

    def shell(self, command: str, *, deadline_s: float = 60, is_checked: bool = True) -> str:
        """Run a command in the instance and return its standard output."""
        self.bring_up()
        words = ["ssh", *self._options(), f"root@{self.address}", command]
        return self.place.rig.run(words, deadline_s=deadline_s, is_checked=is_checked)

    def begin_shell(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command in the instance and return the program that carries it."""
        words = ["ssh", *self._options(), f"root@{self.address}", command]
        return self.place.rig.popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def terminate(self) -> None:
        """Terminate it and wait until it is."""
        self.disconnect()
        self.cloud.terminate_instances(InstanceIds=[self.instance_id])
        self.wait_end()


def tcp(port: int, cidr: str) -> dict[str, Any]:
    """Return a permission for a TCP port."""
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port,
        "IpRanges": [{"CidrIp": cidr}],
    }


def ping_from(cidr: str) -> dict[str, Any]:
    """Return a permission for ICMP."""
    return {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": cidr}]}
