"""Requests that mean harm, at a sandbox's own process: answered as EC2 does, and survived."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from appliance.testing.sandbox import Sandbox
from tests.faults.hostile import Grammar
from tests.faults.hostile_client import Answer, HostileClient
from tests.faults.process import ENVIRONMENT_CODES
from tests.rig import ROOT, wait_for

ROUNDS = 10
OF_ROUND = 10_000
QUICK = 1_500
WARM_UP = 500
MOST_GROWTH_MIB = 50
QUOTA = {"instances": 30, "security_groups": 40, "key_pairs": 20, "rules": 50}


class Target:
    """A sandbox with something in it that requests can name."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.folder = Path(sandbox.environment["ANYNODE_SANDBOX"])
        self.log_path = Path(os.readlink(f"/proc/{sandbox.pid}/fd/2"))
        self._limit()
        self.client = HostileClient(sandbox.environment)
        self.ec2 = sandbox.client()
        self.rss_mib: list[float] = []
        self.counts: Counter[str] = Counter()

    def _limit(self) -> None:
        """Let the project have little: what requests make must not be what grows."""
        store = Path(self.folder, "node-1", "store.sqlite")
        with closing(sqlite3.connect(store, timeout=30)) as connection, connection:
            for row in QUOTA.items():
                connection.execute("UPDATE quotas SET ceiling = ?2 WHERE resource = ?1", row)

    def anynode(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli", "--config", str(self.folder), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def known(self) -> dict[str, list[str]]:
        """Have an instance, a group and a key, and return values that name what there is."""
        groups = self.ec2.describe_security_groups()["SecurityGroups"]
        instances = [
            each["InstanceId"]
            for page in self.ec2.describe_instances()["Reservations"]
            for each in page["Instances"]
            if each["State"]["Name"] in ("running", "pending", "stopped")
        ]
        if len(instances) < 2:
            instances += self.launch(2)
        rules = self.ec2.describe_security_group_rules()["SecurityGroupRules"]
        subnets = self.ec2.describe_subnets()["Subnets"]
        ids = instances[:4]
        group_ids = [each["GroupId"] for each in groups][:4]
        return {
            "InstanceId": ids,
            "InstanceIds": ids,
            "ResourceId": [*ids, *group_ids, self.sandbox.image_id],
            "ImageId": [self.sandbox.image_id],
            "GroupId": group_ids,
            "SecurityGroupId": group_ids,
            "SecurityGroupRuleId": [each["SecurityGroupRuleId"] for each in rules][:4],
            "SubnetId": [each["SubnetId"] for each in subnets],
            "VpcId": [subnets[0]["VpcId"]],
            "GroupName": ["default", "mine", "yours"],
            "GroupDescription": ["mine"],
            "KeyName": ["mine", "yours"],
            "InstanceType": ["t2.nano", "m1.small"],
            "MinCount": ["1"],
            "MaxCount": ["1", "2"],
            "IpProtocol": ["tcp", "udp", "-1", "icmp"],
            "FromPort": ["22", "1", "-1"],
            "ToPort": ["22", "65535", "-1"],
            "CidrIp": ["10.0.0.0/8", "0.0.0.0/0"],
            "ResourceType": ["instance", "security-group"],
            "Name": ["tag:a", "instance-id", "vpc-id", "group-name"],
            "Attribute": ["userData", "instanceType", "groupSet"],
            "MaxResults": ["5", "1000"],
        }

    def rss(self) -> float:
        """Return the MiB that the process has in memory."""
        status = Path(f"/proc/{self.sandbox.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def attack(self, seed: int, count: int) -> None:
        """Send requests, each of which must be answered as EC2 answers it."""
        for request in Grammar(seed, self.known()).requests(count):
            moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            try:
                answer = self.client.send(request, moment)
                assert_sound(answer)
            except Exception as error:
                text = f"seed {seed}, {request}: {error}\n{self.log()[-3000:]}"
                raise AssertionError(text) from error
            self.counts[answer.code or "success"] += 1

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def assert_unharmed(self) -> None:
        """See that nothing was noticed that should not be, and that a life is lived as ever."""
        assert "Traceback" not in self.log(), self.log()[-5000:]
        self.live()
        ignored = [word for code in ENVIRONMENT_CODES for word in ("--ignore", code)]
        found = self.anynode("verify", "--wait", "30", *ignored, "--json")
        assert found.returncode == 0, found.stdout + found.stderr
        assert json.loads(found.stdout)["findings"] == []

    def live(self) -> None:
        """Launch, stop, start and terminate an instance, and clear away all others."""
        ec2 = self.ec2
        everything = [
            each["InstanceId"]
            for page in ec2.describe_instances()["Reservations"]
            for each in page["Instances"]
            if each["State"]["Name"] != "terminated"
        ]
        for each in everything:
            for name in ("DisableApiTermination", "DisableApiStop"):
                ec2.modify_instance_attribute(InstanceId=each, **{name: {"Value": False}})
        if everything:
            ec2.terminate_instances(InstanceIds=everything)
            self.wait_for("terminated", everything)
        one = self.launch(1)
        self.wait_for("running", one)
        ec2.stop_instances(InstanceIds=one)
        self.wait_for("stopped", one)
        ec2.start_instances(InstanceIds=one)
        self.wait_for("running", one)
        ec2.terminate_instances(InstanceIds=one)
        self.wait_for("terminated", one)

    def launch(self, count: int) -> list[str]:
        made = self.ec2.run_instances(
            ImageId=self.sandbox.image_id, InstanceType="t2.nano", MinCount=count, MaxCount=count
        )
        return [each["InstanceId"] for each in made["Instances"]]

    def wait_for(self, state: str, ids: Sequence[str]) -> None:
        def is_so() -> bool:
            found = self.ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
            states = {each["State"]["Name"] for page in found for each in page["Instances"]}
            return states == {state}

        wait_for(is_so, 60, f"{len(ids)} instances to be {state}")


def assert_sound(answer: Answer) -> None:
    assert answer.status < 500, answer.body
    assert b"Traceback" not in answer.body
    assert b"/site-packages/" not in answer.body
    assert len(answer.message) < 2_000, answer.body
    if answer.status >= 400:
        assert answer.code
        assert answer.request_id


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    # With a folder of its own: what its fakes have is there, too, for verify to see.
    with Sandbox(state=tmp_path_factory.mktemp("hostile")) as sandbox:
        found = Target(sandbox)
        found.attack(seed=0, count=WARM_UP)
        found.rss_mib.append(found.rss())
        yield found
        print(f"\nRSS {found.rss_mib} MiB; answers {found.counts.most_common()}")


def attack(target: Target, seed: int, count: int) -> None:
    before, began, cpu = target.rss(), time.monotonic(), time.process_time()
    target.attack(seed, count)
    spent = time.monotonic() - began
    target.rss_mib.append(target.rss())
    own = time.process_time() - cpu
    rss = f"{before:.1f} → {target.rss_mib[-1]:.1f} MiB"
    print(f"seed {seed}: {count / spent:.0f} requests/s, own CPU {own:.1f} s, RSS {rss}")
    target.assert_unharmed()
    assert target.rss_mib[-1] - target.rss_mib[0] < MOST_GROWTH_MIB, target.rss_mib


@pytest.mark.faults("hostile: requests", quick=True)
def test_two_thousand_hostile_requests(target: Target) -> None:
    attack(target, seed=2011, count=QUICK)


@pytest.mark.faults("hostile: requests")
@pytest.mark.parametrize("seed", range(1, ROUNDS + 1))
def test_ten_thousand_hostile_requests(target: Target, seed: int) -> None:
    attack(target, seed, OF_ROUND)
