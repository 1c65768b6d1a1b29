"""A sandbox for the tests of others: up when it is entered, gone when it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import CommandFailed, ConfigError
from appliance.node_process import start_ticks
from appliance.testing.sandbox import Sandbox


def test_it_lives_as_long_as_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with Sandbox(region="eu-x-1", zones="b", account="000011112222") as one, Sandbox() as other:
        assert one.endpoint != other.endpoint
        assert one.client("sts").get_caller_identity()["Account"] == "000011112222"
        assert one.region == "eu-x-1"
        other_cloud = {**os.environ, "AWS_SESSION_TOKEN": "testing", **one.environment}
        aws = Path(sys.executable).with_name("aws")
        subprocess.run([aws, "ec2", "describe-vpcs"], env=other_cloud, check=True, timeout=60)
        ec2 = one.client()
        launched = ec2.run_instances(ImageId=one.image_id, MinCount=1, MaxCount=1)
        assert launched["Instances"][0]["Placement"]["AvailabilityZone"] == "eu-x-1b"
        assert other.client().describe_instances()["Reservations"] == []
        pids = one.pid, other.pid
        assert all(start_ticks(pid) for pid in pids)
        other.stop()
        other.stop()
    assert not any(start_ticks(pid) for pid in pids)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="does not run"):
        one.environment  # noqa: B018
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)


def test_it_says_why_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(CommandFailed, match="1 nodes cannot make 2 zones"):
        Sandbox(zones="a,b", nodes=1).start()
    assert list(tmp_path.iterdir()) == []
