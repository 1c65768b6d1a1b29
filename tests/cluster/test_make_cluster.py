"""``make cluster`` as its user runs it: with simulated nodes, interrupted, and removed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.ec2_client import Ec2Client, Ec2Credentials, read_env_file
from tests.cluster.__main__ import ENV, RECORD, find_keeper, main
from tests.cluster.cluster import HOST_LINK, Cluster, ignore
from tests.cluster.region import Region
from tests.cluster.simulated import MOST, PLENTY, ZONE, Simulated
from tests.node.conftest import NEEDED
from tests.rig import ROOT, wait_for
from tests.rig.fixtures import require
from tests.services.own import require_services

_COMMAND = (sys.executable, "-m", "tests.cluster")
_SIMULATED = 3


@pytest.mark.parametrize("given", ["-1", str(MOST + 1), "many"])
def test_a_number_that_cannot_be_is_refused_in_words(given: str) -> None:
    done = CliRunner().invoke(main, ["up", "--fake", given])
    assert done.exit_code == 2
    assert "Invalid value for '--fake'" in done.output
    assert given in done.output


def rigs() -> set[Path]:
    return set(Path("/var/tmp").glob("rig-*"))


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    require(*NEEDED)
    require_services()
    assert not find_keeper(), "a cluster is up; `make cluster-stop` removes it"
    before = rigs()
    yield
    subprocess.run([*_COMMAND, "down"], cwd=ROOT, check=True, capture_output=True)
    assert rigs() <= before
    assert not Path("/sys/class/net", HOST_LINK).exists()
    assert not ENV.exists()
    assert not RECORD.exists()


@pytest.mark.node
@pytest.mark.timeout(400)
@pytest.mark.faults("cluster: on one machine")
@pytest.mark.usefixtures("nothing_is_left")
def test_simulated_nodes_join_and_take_launches() -> None:
    done = subprocess.run(
        [*_COMMAND, "up", "--fake", str(_SIMULATED)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{_SIMULATED} of {_SIMULATED} simulated nodes are up" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    shown = {row[0]: row[1:4] for row in rows if row and row[0] in ("n1", "s1", "s2", "s3")}
    assert shown["n1"] == ["local-1a", "up", "since"]
    assert all(shown[f"s{number}"] == [ZONE, "up", "since"] for number in (1, 2, 3))
    told = read_env_file(ENV)
    client = Ec2Client(
        Ec2Credentials(
            endpoint=told["AWS_ENDPOINT_URL"],
            region=told["AWS_REGION"],
            access_key_id=told["AWS_ACCESS_KEY_ID"],
            secret=told["AWS_SECRET_ACCESS_KEY"],
        )
    )
    zone = told["ANYNODE_SIMULATED_ZONE"]
    wanted = {
        "ImageId": told["ANYNODE_IMAGE"],
        "InstanceType": "m1.tiny",
        "MinCount": 4,
        "MaxCount": 4,
    }
    made = client.call("RunInstances", **wanted, Placement={"AvailabilityZone": zone})
    ids = [one["InstanceId"] for one in made["Instances"]]

    def states() -> set[str]:
        return {one["State"]["Name"] for one in client.instances(InstanceIds=ids)}

    wait_for(lambda: states() == {"running"}, 60, f"{ids} to run")
    client.call("TerminateInstances", InstanceIds=ids)
    wait_for(lambda: states() == {"terminated"}, 60, f"{ids} to be gone")


@pytest.mark.node
@pytest.mark.timeout(200)
@pytest.mark.faults("cluster: on one machine")
@pytest.mark.usefixtures("nothing_is_left")
def test_ctrl_c_while_it_forms_leaves_nothing() -> None:
    # Whoever is started in the background of a script ignores that signal, and all below it.
    hearing = ("env", "--default-signal=INT")
    with subprocess.Popen(
        [*hearing, *_COMMAND, "up", "--fake", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        heard = next(line for line in process.stdout if "begin the cluster" in line)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) != 0, heard + said
    assert "Interrupted: removing what there is." in said
    assert not find_keeper()
    assert not Path("/sys/class/net", HOST_LINK).exists()


@pytest.mark.node
@pytest.mark.timeout(300)
@pytest.mark.faults("cluster: on one machine")
@pytest.mark.usefixtures("nothing_is_left")
def test_all_is_well_with_simulated_nodes_that_hold_instances(tmp_path: Path) -> None:
    with Cluster(("n1",), settings=PLENTY) as cluster, Simulated(cluster, 3, ignore) as simulated:
        cluster.form()
        simulated.join()
        region = Region(cluster, tmp_path)
        made = region.launch(6, Placement={"AvailabilityZone": ZONE})
        cluster.first.verify()
        nodes = {one["name"]: one for one in cluster.first.cli_json("node", "list")}
        assert sum(nodes[name]["instances"] for name in simulated.names) == len(made)
        cluster.first.cli("node", "drain", "s1")
        held = cluster.first.cli_json("node", "list")
        assert [one["name"] for one in held if not one["accepts_instances"]] == ["s1"]
