"""``anynode sandbox`` as a process: what it makes, what it refuses, and that nothing stays."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError
from click.testing import CliRunner, Result

from appliance.cli import main
from appliance.ec2_client import read_env_file
from appliance.instance_types import CATALOG

UP_S = 60.0
END_S = 30.0
MOST_CPU_S = 3.0
TYPES = """
[types."x1.huge"]
vcpus = 3
memory_mib = 5000
disk_gib = 7
[types."t3.micro"]
vcpus = 1
memory_mib = 700
"""


class Run:
    """One process, its env file, and what it printed."""

    def __init__(self, folder: Path, *words: str, environment: dict[str, str] | None = None):
        self.env_path = folder / "sandbox.env"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "sandbox", "--port", "0", *words],
            cwd=folder,
            env={**kept, "TMPDIR": str(self.temporary), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_up(self) -> Run:
        until = time.monotonic() + UP_S
        while not self.env_path.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        return self

    @property
    def variables(self) -> dict[str, str]:
        return read_env_file(self.env_path)

    def client(self, service: str = "ec2") -> Any:
        variables = self.variables
        return boto3.client(
            service,
            endpoint_url=variables["AWS_ENDPOINT_URL"],
            region_name=variables["AWS_DEFAULT_REGION"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            config=ClientConfig(proxies={}, retries={"total_max_attempts": 1}),
        )

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal and return exit status and output."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        printed, said = self.process.communicate(timeout=END_S)
        return self.process.returncode, printed, said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A sandbox with three zones on four nodes, instance types and a key of the user's own."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "types.toml").write_text(TYPES)
    run = Run(
        folder,
        *("--region", "eu-test-1", "--zones", "a,c,eu-test-1-edge", "--nodes", "4"),
        *("--account", "111122223333", "--types", "types.toml", "--transition", "0.3"),
        environment={"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"},
    )
    try:
        yield run.wait_until_up()
    finally:
        run.close()


@pytest.fixture(scope="module")
def ec2(run: Run) -> Any:
    return run.client()


def launch(ec2: Any, run: Run, count: int = 1, **more: Any) -> list[dict[str, Any]]:
    reply = ec2.run_instances(
        ImageId=run.variables["ANYNODE_IMAGE"], MinCount=count, MaxCount=count, **more
    )
    return list(reply["Instances"])


def code_and_text(error: ClientError) -> tuple[str, str]:
    return error.response["Error"]["Code"], error.response["Error"]["Message"]


class TestUp:
    def test_env_file_is_whole_and_private(self, run: Run) -> None:
        assert run.env_path.stat().st_mode & 0o777 == 0o600
        variables = run.variables
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", variables["AWS_ENDPOINT_URL"])
        assert variables["AWS_DEFAULT_REGION"] == "eu-test-1"
        assert variables["ANYNODE_IMAGE"].startswith("ami-")
        assert variables["AWS_SESSION_TOKEN"] == ""

    def test_key_of_the_environment_is_adopted(self, run: Run) -> None:
        assert run.variables["AWS_ACCESS_KEY_ID"] == "testing"
        who = run.client("sts").get_caller_identity()
        assert who["Account"] == "111122223333"

    def test_zones(self, ec2: Any) -> None:
        found = ec2.describe_availability_zones()["AvailabilityZones"]
        assert [(each["ZoneName"], each["State"]) for each in found] == [
            ("eu-test-1-edge", "available"),
            ("eu-test-1a", "available"),
            ("eu-test-1c", "available"),
        ]

    def test_image_is_for_all(self, run: Run, ec2: Any) -> None:
        image_id = run.variables["ANYNODE_IMAGE"]
        [image] = ec2.describe_images(ImageIds=[image_id])["Images"]
        assert image["Public"]
        assert image["OwnerId"] == "111122223333"
        assert image["State"] == "available"

    def test_types_of_the_file_and_built_in(self, run: Run, ec2: Any) -> None:
        def size(name: str) -> tuple[int, int]:
            [kind] = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
            return kind["VCpuInfo"]["DefaultVCpus"], kind["MemoryInfo"]["SizeInMiB"]

        assert size("x1.huge") == (3, 5000)
        assert size("t3.micro") == (1, 700)
        assert size("m5.24xlarge") == (96, 384 * 1024)
        assert launch(ec2, run, InstanceType="x1.huge")[0]["InstanceType"] == "x1.huge"

    def test_every_built_in_type_fits(self, run: Run, ec2: Any) -> None:
        largest = max(CATALOG.values(), key=lambda kind: kind.memory_mib)
        [one] = launch(ec2, run, InstanceType=largest.name)
        wait_for(ec2, "running", one["InstanceId"])

    def test_default_group_and_own_key(self, ec2: Any) -> None:
        [group] = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
        assert group["OwnerId"] == "111122223333"
        made = ec2.create_key_pair(KeyName="made", KeyType="ed25519")
        assert "PRIVATE KEY" in made["KeyMaterial"]


def wait_for(ec2: Any, state: str, *ids: str) -> list[dict[str, Any]]:
    """Return instances once all are in a state, which a waiter of a client would see, too."""
    until = time.monotonic() + END_S
    while True:
        found = [
            each
            for reservation in ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
            for each in reservation["Instances"]
        ]
        if {each["State"]["Name"] for each in found} == {state}:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.02)


class TestInstances:
    def test_life_takes_its_time(self, run: Run, ec2: Any) -> None:
        began = time.monotonic()
        [one] = launch(ec2, run)
        instance_id = one["InstanceId"]
        assert one["State"]["Name"] == "pending"
        wait_for(ec2, "running", instance_id)
        assert time.monotonic() - began >= 0.3
        assert "ready" in ec2.get_console_output(InstanceId=instance_id)["Output"]
        [change] = ec2.stop_instances(InstanceIds=[instance_id])["StoppingInstances"]
        assert change["CurrentState"]["Name"] == "stopping"
        wait_for(ec2, "stopped", instance_id)
        ec2.terminate_instances(InstanceIds=[instance_id])
        wait_for(ec2, "terminated", instance_id)

    def test_verify_looks_at_what_is_to_be_seen(self, run: Run, ec2: Any) -> None:
        """The fakes' memory is the sandbox's own: what cannot be seen is not called missing."""
        [one] = launch(ec2, run)
        wait_for(ec2, "running", one["InstanceId"])
        shown = invoke("--config", run.variables["ANYNODE_SANDBOX"], "verify", "--json")
        assert shown.exit_code == 0, shown.output
        found = {each["code"] for each in json.loads(shown.output)["findings"]}
        assert found - {"N3.DISK_FULL"} == {"N1.HIDDEN"}, shown.output

    def test_each_zone_has_a_default_subnet(self, run: Run, ec2: Any) -> None:
        homes = {}
        for zone in ("eu-test-1a", "eu-test-1c", "eu-test-1-edge"):
            [one] = launch(ec2, run, Placement={"AvailabilityZone": zone})
            assert one["Placement"]["AvailabilityZone"] == zone
            [up] = wait_for(ec2, "running", one["InstanceId"])
            assert up["Placement"]["AvailabilityZone"] == zone
            homes[one["SubnetId"]] = ".".join(up["PrivateIpAddress"].split(".")[:3])
        assert sorted(homes.values()) == ["172.31.0", "172.31.16", "172.31.32"]

    def test_subnet_decides_the_zone(self, run: Run, ec2: Any) -> None:
        [first] = launch(ec2, run, Placement={"AvailabilityZone": "eu-test-1c"})
        subnet_id = first["SubnetId"]
        [second] = launch(ec2, run, SubnetId=subnet_id)
        assert second["Placement"]["AvailabilityZone"] == "eu-test-1c"
        with pytest.raises(ClientError) as caught:
            launch(ec2, run, SubnetId=subnet_id, Placement={"AvailabilityZone": "eu-test-1a"})
        code, text = code_and_text(caught.value)
        assert code == "InvalidParameterValue"
        assert text.startswith("Value (eu-test-1a) for parameter availabilityZone is invalid.")
        assert text.endswith(f"Subnet '{subnet_id}' is in the availability zone eu-test-1c")

    def test_without_a_zone_the_roomiest_is_taken(self, run: Run, ec2: Any) -> None:
        """Zone a has two nodes, the others have one: it takes launches until they are even."""
        [one] = launch(ec2, run)
        assert one["Placement"]["AvailabilityZone"] == "eu-test-1a"
        wait_for(ec2, "running", one["InstanceId"])


class TestEnd:
    def test_nothing_stays(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        try:
            run.wait_until_up()
            assert run.cpu_s() < MOST_CPU_S
            endpoint = run.variables["AWS_ENDPOINT_URL"]
            launch(run.client(), run, 3)
            status, printed, said = run.end(signal.SIGINT)
        finally:
            run.close()
        assert (status, said) == (0, "")
        assert endpoint in printed
        assert ". ./sandbox.env && aws ec2 describe-instances" in printed
        assert not run.env_path.exists()
        assert list(run.temporary.iterdir()) == []

    def test_start_is_broken_off(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        try:
            until = time.monotonic() + UP_S
            while not any(run.temporary.iterdir()):
                assert time.monotonic() < until
                time.sleep(0.005)
            status, _, said = run.end()
        finally:
            run.close()
        assert (status, said.splitlines()[-1]) == (130, "Interrupted.")
        assert not run.env_path.exists()
        assert list(run.temporary.iterdir()) == []


class TestState:
    def test_a_folder_keeps_everything(self, tmp_path: Path) -> None:
        """The second time it ends with the process that wanted it."""
        owner = subprocess.Popen(["sleep", "600"])
        run = Run(tmp_path, "--state", "kept", "--nodes", "3")
        try:
            run.wait_until_up()
            variables, ec2 = run.variables, run.client()
            ids = [each["InstanceId"] for each in launch(ec2, run, 4)]
            wait_for(ec2, "running", *ids)
            ec2.stop_instances(InstanceIds=ids[:1])
            wait_for(ec2, "stopped", ids[0])
            assert run.end(signal.SIGTERM)[0] == 0
            assert list(run.temporary.iterdir()) == []
            run = Run(tmp_path, "--state", "kept", "--nodes", "3", "--end-with", str(owner.pid))
            run.wait_until_up()
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ANYNODE_IMAGE"):
                assert run.variables[name] == variables[name]
            ec2 = run.client()
            wait_for(ec2, "running", *ids[1:])
            ec2.start_instances(InstanceIds=ids[:1])
            wait_for(ec2, "running", *ids)
            shown = invoke("--config", str(tmp_path / "kept"), "verify", "--wait", "20")
            assert shown.exit_code == 0, shown.output
            refused = invoke(
                *("sandbox", "--state", str(tmp_path / "kept"), "--port", "0"),
                *("--env-file", str(tmp_path / "other.env")),
            )
            assert "Another node runs" in refused.stderr
            owner.kill()
            owner.wait()
            assert run.wait()[0] == 0
            assert not run.env_path.exists()
        finally:
            owner.kill()
            owner.wait()
            run.close()
        refused = invoke(
            *("sandbox", "--state", str(tmp_path / "kept"), "--account", "999999999999"),
            *("--port", "0", "--env-file", str(tmp_path / "other.env")),
        )
        assert "belongs to account 123456789012" in refused.stderr
        assert refused.exit_code == 1


def invoke(*words: str, environment: dict[str, str | None] | None = None) -> Result:
    """Run a command that ends by itself, in this process."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    hidden: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith(("AWS_", "ANYNODE_"))
    }
    try:
        return CliRunner().invoke(main, list(words), env={**hidden, **(environment or {})})
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)

    def refuse(self, *words: str, status: int = 1) -> str:
        """Return what is said, with a hint, by a sandbox that does not start and leaves nothing."""
        before = sorted(Path.cwd().iterdir())
        result = invoke("sandbox", *words)
        assert result.exit_code == status, result.output
        assert "hint:" in result.stderr
        assert "Traceback" not in result.output
        assert sorted(Path.cwd().iterdir()) == before
        return result.stderr

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--zones", "a,a"), "named twice"),
            (("--zones", "a,,b"), "no name of an availability zone"),
            (("--zones", "Zone 1"), "no name of an availability zone"),
            (("--region", "us/east"), "no name of a region"),
            (("--nodes", "1", "--zones", "a,b"), "1 nodes cannot make 2 zones"),
            (("--account", "12"), "is no account number"),
            (("--types", "missing.toml"), "No such file"),
            (("--env-file", "no/such/folder.env"), "No such file or directory"),
            (("--env-file", "."), "is a folder"),
        ],
    )
    def test_wrong_options(self, words: Sequence[str], said: str) -> None:
        assert said in self.refuse("--port", "0", *words)

    @pytest.mark.parametrize(
        "text", ["[types.", "vcpus = 1", '[types."x1.one"]\nvcpus = 0\nmemory_mib = 1', "types = 3"]
    )
    def test_a_file_that_has_no_types(self, text: str) -> None:
        Path("types.toml").write_text(text)
        assert "is no file of instance types" in self.refuse("--port", "0", "--types", "types.toml")

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            said = self.refuse("--port", str(other.getsockname()[1]))
        assert "Could not listen" in said
        assert "--port 0" in said

    def test_an_env_file_of_something_else(self) -> None:
        Path("mine.env").write_text("export MINE=1\n")
        assert "not written by a sandbox" in self.refuse("--port", "0", "--env-file", "mine.env")

    def test_an_env_file_of_a_sandbox_that_runs(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            Path("sandbox.env").write_text(
                f"export AWS_ENDPOINT_URL=http://127.0.0.1:{port}\nexport ANYNODE_SANDBOX=/x\n"
            )
            assert "belongs to a sandbox that runs" in self.refuse("--port", "0")

    def test_a_key_that_no_client_could_use(self) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "a/b", "AWS_SECRET_ACCESS_KEY": "secret"}
        result = invoke("sandbox", "--port", "0", environment={**keys})
        assert "cannot be used as an access key" in result.stderr
        assert "secret" not in result.stderr.replace("the secret up to", "")


def test_what_only_real_networks_need_is_not_loaded() -> None:
    """The netlink library alone is a sixth of all modules."""
    names = "pyroute2", "libvirt", "pycdlib", "boto3"
    code = (
        "import sys, appliance.sandbox, appliance.datapath.role, appliance.compute.role; "
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
