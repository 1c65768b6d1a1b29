"""What the operator's commands say of a node that runs."""

import pytest

from tests.node.cloud import READY, Cloud, Instance
from tests.node.place import GATEWAY, Place

pytestmark = pytest.mark.node


def test_status_tells_that_it_is_up(place: Place, one: Instance) -> None:
    said = place.cli_json("status")
    assert said["is_up"]
    assert said["instances"]["running"] >= 1
    (node,) = said["nodes"]
    assert node["is_up"]
    assert node["accelerator"] in ("kvm", "tcg")


def test_instances_and_their_history(place: Place, one: Instance) -> None:
    found = {each["instance_id"]: each for each in place.cli_json("instances")}
    assert found[one.instance_id]["state"] == "running"
    assert one.address in str(found[one.instance_id])
    said = place.cli("trace", one.instance_id)
    for step in ("accept", "place", "bind", "attach-ports", "apply-firewall", "define", "start"):
        assert step in said
    assert "Placed on node1" in place.cli("explain", one.instance_id)


def test_groups_and_what_is_in_force(place: Place, other: Instance) -> None:
    said = place.cli_json("firewall", "list", "--instance", other.instance_id)
    (group,) = said["groups"]
    assert f"{GATEWAY}/32" in str(group)
    assert said["in_force"]["is_guarded"]
    assert other.tap in said["in_force"]["taps"]


def test_the_console(place: Place, cloud: Cloud, one: Instance) -> None:
    env = place.config_path.with_name("anynode.env")
    env.touch(mode=0o600)
    env.write_text(place.cli("key", "create", "tester", "tests", "--env"))
    assert READY in place.cli("console", one.instance_id)
