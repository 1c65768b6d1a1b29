"""An instance's life on a real node process that may die at any moment of it.

The user of this life does what a careful program does: a call that got no answer is made again,
and what was answered is relied on.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from appliance.model import PowerState, tap_name
from tests.faults.process import CONNECTION_LOST, SIGKILLED, ProcessOnFakes
from tests.rig import wait_for

STATE_S = 30
QUIET_S = 15
DEATH_S = 15
ONE_BOOT = "booting\nready\n"

POWER = {
    "running": (PowerState.RUNNING,),
    # A start that was undone leaves no definition; the next one makes its own.
    "stopped": (PowerState.SHUT_OFF, None),
}
"""What the hypervisor may have of an instance in a state; of others it has nothing."""

Environment = Mapping[str, str]
Promise = Callable[[], bool]

_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def template() -> ProcessOnFakes:
    """Return a node that was set up, with one instance that runs; its process was killed."""
    folder = tempfile.TemporaryDirectory(prefix="anynode-faults.")
    _folders.append(folder)
    node = ProcessOnFakes(Path(folder.name))
    node.set_up()
    node.start()
    try:
        life = Life(node)
        life.instance_id = life.launch("bystander")
        life.reach("running")
        life.wait_quiet()
    finally:
        node.kill()
    return node


@functools.cache
def bystander() -> str:
    """Return the instance that nothing may happen to."""
    (instance_id,) = template().hypervisor()
    return instance_id


class Life:
    """One instance beside a bystander, and the node below, which is revived when it dies.

    ``lives`` are the environments of the processes that follow the first one; after the last the
    processes have none.
    """

    def __init__(self, node: ProcessOnFakes, lives: Sequence[Environment] = ()) -> None:
        self.node = node
        self.client = node.client()
        self.deaths = 0
        self.instance_id = ""
        self.address = ""
        self.phases: list[tuple[str, int]] = []
        self.lives = list(lives)
        self._promises: list[Promise] = []

    # -- calls ------------------------------------------------------------------------------------

    def do(self, action: str, done_before: str = "", **parameters: Any) -> Any:
        """Call an action until a living node answers.

        A repeated call may answer the code ``done_before``: then ``None`` is returned.
        """
        is_repeated = False
        while True:
            try:
                return getattr(self.client, action)(**parameters)
            except CONNECTION_LOST:
                self.revive()
                is_repeated = True
            except ClientError as error:
                if is_repeated and error.response["Error"]["Code"] == done_before:
                    return None
                raise

    def revive(self) -> None:
        """See that the process was killed, and start the next one."""
        assert self.node.wait_for_end() == SIGKILLED, self.node.last_words()
        self.deaths += 1
        environment = self.lives.pop(0) if self.lives else {}
        self.node.start(**environment)
        if not self.node.is_running:
            self.revive()

    def revive_if_dead(self) -> None:
        """Start the next process if this one has died."""
        if not self.node.is_running:
            self.revive()

    def phase(self, name: str) -> None:
        """Note that from here on the crash points belong to a part of this life."""
        self.phases.append((name, len(self.node.trace())))

    # -- wishes -----------------------------------------------------------------------------------

    def launch(self, name: str) -> str:
        """Ask for one instance and return its id; asking again gives the same."""
        image_id = self.do("describe_images")["Images"][0]["ImageId"]
        made = self.do(
            "run_instances",
            ImageId=image_id,
            InstanceType="t2.nano",
            MinCount=1,
            MaxCount=1,
            ClientToken=name,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}
            ],
        )
        instance_id: str = made["Instances"][0]["InstanceId"]
        return instance_id

    def be_born(self) -> None:
        """Ask for the instance; from the answer on it is to be seen."""
        self.instance_id = self.launch("mortal")
        self._promises.append(lambda: self.describe()["Tags"][0]["Value"] == "mortal")

    def make_key_and_group(self) -> None:
        """Make a key pair and a group with a rule; from the answers on they are to be seen."""
        if self.do("create_key_pair", "InvalidKeyPair.Duplicate", KeyName="mortal"):
            self._promises.append(lambda: self._names("describe_key_pairs", "KeyName"))
        if self.do("create_security_group", "InvalidGroup.Duplicate", **_GROUP):
            self._promises.append(lambda: self._names("describe_security_groups", "GroupName"))
        rule = {"GroupName": "mortal", "IpPermissions": [_SSH]}
        self.do("authorize_security_group_ingress", "InvalidPermission.Duplicate", **rule)
        self._promises.append(self._has_rule)

    def _names(self, action: str, member: str) -> bool:
        found: list[dict[str, Any]] = next(
            value for value in self.do(action).values() if isinstance(value, list)
        )
        return "mortal" in [one[member] for one in found]

    def _has_rule(self) -> bool:
        found = self.do("describe_security_groups", GroupNames=["mortal"])["SecurityGroups"]
        return [one["FromPort"] for one in found[0]["IpPermissions"]] == [22]

    def stop(self) -> None:
        """Ask for it to be stopped."""
        self.do("stop_instances", InstanceIds=[self.instance_id])

    def start(self) -> None:
        """Ask for it to be started."""
        self.do("start_instances", InstanceIds=[self.instance_id])

    def reboot(self) -> None:
        """Ask for it to be rebooted, and see it boot."""
        self.do("reboot_instances", InstanceIds=[self.instance_id])

        def has_rebooted() -> bool:
            self.revive_if_dead()
            return "rebooting" in self.node.hypervisor()[self.instance_id].console

        wait_for(has_rebooted, STATE_S, "it to reboot")

    def terminate(self) -> None:
        """Ask for it to be terminated."""
        self.do("terminate_instances", InstanceIds=[self.instance_id])

    # -- what is ----------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what DescribeInstances says of it."""
        answer = self.do("describe_instances", InstanceIds=[self.instance_id])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    def reach(self, state: str, deadline_s: float = STATE_S) -> dict[str, Any]:
        """Wait until it is in a state, return its description, and see that it is really so."""
        seen: list[dict[str, Any]] = []

        def reached() -> bool:
            seen.append(self.describe())
            return bool(seen[-1]["State"]["Name"] == state)

        try:
            wait_for(reached, deadline_s, state)
        except TimeoutError as error:
            last = seen[-1]
            raise AssertionError(
                f"not {state} but {last.get('State')} {last.get('StateReason')}:\n"
                f"{self.node.last_words()}"
            ) from error
        self._keep_address(seen[-1])
        there = self.node.hypervisor().get(self.instance_id)
        assert (there.power if there else None) in POWER.get(state, (None,))
        return seen[-1]

    def _keep_address(self, found: dict[str, Any]) -> None:
        """See that the address is the one that it had before, if it has one now."""
        address = found.get("PrivateIpAddress", "")
        if address:
            assert self.address in ("", address)
            self.address = address

    def wait_quiet(self) -> None:
        """Wait until every message has taken effect and every report is confirmed."""

        def is_quiet() -> bool:
            self.revive_if_dead()
            return not self.node.waiting()

        try:
            wait_for(is_quiet, QUIET_S, "quiet")
        except TimeoutError as error:
            raise AssertionError(f"These wait: {self.node.waiting()}") from error

    def assert_sound(self) -> None:
        """See that all is as it should be, that promises are kept and nobody else was touched."""
        self.wait_quiet()
        try:
            self.node.verify()
        except AssertionError:
            if self.node.is_running:
                raise
            # It has come to its point only now, by itself.
            self.revive()
            self.wait_quiet()
            self.node.verify()
        assert all(promise() for promise in self._promises)
        assert self.node.hypervisor()[bystander()].console == ONE_BOOT

    def assert_nothing_left(self) -> None:
        """See that it is terminated for a reason and nothing of it is left."""
        found = self.reach("terminated")
        assert found["StateReason"]["Message"]
        self.assert_sound()
        facts = self.node.facts()
        only = {bystander()}
        taps = {tap_name(one.port_id) for one in facts.store.ports.values()}
        assert set(facts.hypervisor or {}) == only
        assert {one.instance_id for one in facts.store.ports.values()} == only
        assert {port.tap for port in facts.network_states["fake"].ports} == taps
        assert set(facts.firewall.taps if facts.firewall else ()) == taps
        assert facts.directories == only
        assert set(facts.held) == only

    # -- the whole --------------------------------------------------------------------------------

    def survive(self) -> None:
        """Live the whole life, in which the process must die, and see that nothing came of it."""
        self.live()
        if not self.deaths:
            # What happens again and again, such as a heartbeat, may come to it still.
            wait_for(lambda: not self.node.is_running, DEATH_S, "the node to come to the point")
            self.revive()
            self.assert_nothing_left()
        assert self.deaths == 1

    def live(self) -> None:
        """Launch, reboot, stop, start and terminate the instance."""
        known = 0
        self.phase("groups and keys")
        self.make_key_and_group()
        for name, wish, state in (
            ("launch", self.be_born, "running"),
            ("reboot", self.reboot, "running"),
            ("stop", self.stop, "stopped"),
            ("start", self.start, "running"),
            ("terminate", self.terminate, "terminated"),
        ):
            self.phase(name)
            wish()
            self.reach(state)
            self.wait_quiet()
            if self.deaths > known:
                known = self.deaths
                self.assert_sound()
                self.reach(state)
        self.assert_nothing_left()


_GROUP = {"GroupName": "mortal", "Description": "for an instance that dies"}
_SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
