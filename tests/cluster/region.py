"""What a project has in a cluster of machines: asked by EC2, at whichever node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from appliance.ec2_client import Ec2Client, Ec2Credentials
from appliance.env_file import write_whole
from tests.cluster.cluster import Cluster, ignore
from tests.cluster.machine import Machine
from tests.rig import wait_for

KEY_NAME = "demo"
PROJECT, USER = "demo", "admin"
TYPE = "m1.tiny"
RUNNING_S = 180.0
BOOTED_S = 180.0
EVERYWHERE = ({"CidrIp": "0.0.0.0/0"},)


class Region:
    """A project of a cluster: the demo image, a key pair, a group that lets in pings and SSH.

    :param folder: where the private key is written.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, say: Callable[..., None] = ignore, /
    ) -> None:
        self.cluster = cluster
        self.key_path = folder / f"{KEY_NAME}.pem"
        self._say = say
        self._key = cluster.make_project(PROJECT, USER)
        self.image_id = cluster.import_demo(PROJECT)
        self.group_id = str(
            self.call("CreateSecurityGroup", GroupName="open", Description="pings and SSH")[
                "GroupId"
            ]
        )
        self.permit("icmp", -1)
        self.permit("tcp", 22)
        material = self.call("CreateKeyPair", KeyName=KEY_NAME)["KeyMaterial"]
        write_whole(self.key_path, material, mode=0o600)

    def client(self, machine: Machine | None = None) -> Ec2Client:
        """Return a client of a node's API; the first machine's by default."""
        return Ec2Client(
            Ec2Credentials(
                endpoint=(machine or self.cluster.first).endpoint,
                region=self._key["region"],
                access_key_id=self._key["access_key_id"],
                secret=self._key["secret_access_key"],
            )
        )

    def call(self, action: str, *, via: Machine | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask a node, from its own network."""
        machine = via or self.cluster.first
        return machine.inside(self.client(machine).call, action, **parameters)

    def permit(self, protocol: str, port: int, *, is_revoked: bool = False) -> None:
        """Let everybody in by the group, or no more."""
        action = "RevokeSecurityGroupIngress" if is_revoked else "AuthorizeSecurityGroupIngress"
        permission = {
            "IpProtocol": protocol,
            "FromPort": port,
            "ToPort": port,
            "IpRanges": [*EVERYWHERE],
        }
        self.call(action, GroupId=self.group_id, IpPermissions=[permission])

    def instances(self, *ids: str, via: Machine | None = None) -> list[dict[str, Any]]:
        """Describe instances; all without an id."""
        machine = via or self.cluster.first
        return machine.inside(self.client(machine).instances, InstanceIds=[*ids])

    def state(self, instance_id: str, via: Machine | None = None) -> str:
        """Return the state of an instance."""
        return str(self.instances(instance_id, via=via)[0]["State"]["Name"])

    def launch(
        self, count: int = 1, via: Machine | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """Launch instances and wait until they run."""
        asked = self.call(
            "RunInstances",
            via=via,
            ImageId=self.image_id,
            InstanceType=TYPE,
            KeyName=KEY_NAME,
            SecurityGroupIds=[self.group_id],
            MinCount=count,
            MaxCount=count,
            **more,
        )
        ids = [one["InstanceId"] for one in asked["Instances"]]
        self._say(f"launched {', '.join(ids)}")
        wait_for(partial(self._are_running, ids, via), RUNNING_S, f"{', '.join(ids)} to run")
        return self.instances(*ids, via=via)

    def _are_running(self, ids: list[str], via: Machine | None) -> bool:
        found = self.instances(*ids, via=via)
        states = {one["State"]["Name"] for one in found}
        if "terminated" in states:
            raise RuntimeError(f"A launch failed: {found}")
        return states == {"running"}

    def home(self, instance_id: str) -> Machine:
        """Return the machine on which an instance's process is.

        :raises AssertionError: there is none, or more than one.
        """
        found = [one for one in self.cluster.machines if one.qemu_pid(instance_id)]
        assert len(found) == 1, f"{instance_id} runs on {[one.name for one in found]}"
        return found[0]

    def launch_on_each(self) -> dict[str, dict[str, Any]]:
        """Launch until each node has an instance; return one of each by the node's name.

        The scheduler takes one of the best few nodes by chance: what is more than one is removed,
        and the others take none while one of them is missing.
        """
        found: dict[str, dict[str, Any]] = {}
        for one in self.launch(len(self.cluster.machines)):
            where = self.home(one["InstanceId"]).name
            if where in found:
                self.call("TerminateInstances", InstanceIds=[one["InstanceId"]])
            else:
                found[where] = one
        for machine in self.cluster.machines:
            if machine.name not in found:
                with self.only(machine.name):
                    (found[machine.name],) = self.launch()
        for name, one in found.items():
            self._say(f"{one['InstanceId']} runs on {name} with {one['PrivateIpAddress']}")
        return found

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Let no machine but one take instances."""
        others = [one.name for one in self.cluster.machines if one.name != name]
        for other in others:
            self.cluster.first.cli("node", "drain", other)
        try:
            yield
        finally:
            for other in others:
                self.cluster.first.cli("node", "undrain", other)

    def ssh(
        self, machine: Machine, instance: dict[str, Any], command: str, deadline_s: float = 60
    ) -> str:
        """Run a command in an instance, from its own node; empty when it lets nobody in."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        more = ("BatchMode=yes", "ConnectTimeout=5")
        flags = [word for one in (*options, *more) for word in ("-o", one)]
        target = f"root@{instance['PrivateIpAddress']}"
        return machine.rig.run(
            ["ssh", "-i", self.key_path, *flags, target, command],
            is_checked=False,
            deadline_s=deadline_s,
        )

    def pings(self, machine: Machine, instance: dict[str, Any], address: str) -> bool:
        """Say whether an address answers an instance, which is asked from its own node."""
        answer = self.ssh(machine, instance, f"ping -c 1 -W 2 {address}")
        return " 0% packet loss" in answer

    def ping_all(self, instances: dict[str, dict[str, Any]]) -> None:
        """Let each instance, by its node's name, ping those on the other nodes."""
        for name, one in instances.items():
            for other_name, other in instances.items():
                if other_name != name:
                    self.wait_pings(self.cluster.machine(name), one, other["PrivateIpAddress"])
                    self._say(
                        f"{one['PrivateIpAddress']} on {name} pings "
                        f"{other['PrivateIpAddress']} on {other_name}"
                    )

    def wait_pings(self, machine: Machine, instance: dict[str, Any], address: str) -> None:
        """Wait until an address answers an instance."""
        what = f"{address} to answer {instance['PrivateIpAddress']} on {machine.name}"
        wait_for(partial(self.pings, machine, instance, address), BOOTED_S, what)
