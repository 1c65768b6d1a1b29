"""``anynode launch``: instances through the EC2 API, as any client launches them."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.access import ENV_NAME, Access, pass_access
from appliance.cli.output import json_option, print_json, say

if TYPE_CHECKING:
    from appliance.ec2_client import Ec2Client

WAIT_S = 600.0
_POLL_S = 0.5


@click.command("launch")
@click.option("--image", "image_id", metavar="AMI", help="Image; else $ANYNODE_IMAGE.")
@click.option("--type", "instance_type", default="m1.tiny", show_default=True, help="Size.")
@click.option(
    "--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many."
)
@click.option("--key", "key_name", help="Name of the key pair that may log in.")
@click.option("--name", help="Tag Name of the instances.")
@click.option("--zone", help="Availability zone; else any.")
@click.option("--group", "groups", multiple=True, help="Id of a security group; may be repeated.")
@click.option(
    "--user-data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that the instance gets as its user data.",
)
@click.option("--wait", is_flag=True, help="Wait until they run; exit status 1 when one does not.")
@json_option
@pass_access
@click.pass_context
def launch(
    context: click.Context,
    access: Access,
    image_id: str | None,
    instance_type: str,
    count: int,
    key_name: str | None,
    name: str | None,
    zone: str | None,
    groups: tuple[str, ...],
    user_data: Path | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Launch instances through the EC2 API.

    The access key is that of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), else
    that of anynode.env beside the configuration file.
    """
    parameters: dict[str, Any] = {
        "ImageId": image_id or _image_of_environment(access),
        "InstanceType": instance_type,
        "MinCount": count,
        "MaxCount": count,
        "ClientToken": str(uuid.uuid4()),
    }
    if key_name:
        parameters["KeyName"] = key_name
    if zone:
        parameters["Placement"] = {"AvailabilityZone": zone}
    if groups:
        parameters["SecurityGroupIds"] = list(groups)
    if user_data:
        parameters["UserData"] = user_data.read_bytes()
    if name:
        tags = [{"Key": "Name", "Value": name}]
        parameters["TagSpecifications"] = [{"ResourceType": "instance", "Tags": tags}]
    client = access.ec2()
    ids = [one["InstanceId"] for one in client.call("RunInstances", **parameters)["Instances"]]
    if not as_json:
        for instance_id in ids:
            say(f"Launched {instance_id}.")
    found = _wait(client, ids) if wait else client.instances(InstanceIds=ids)
    lines = [_line(one) for one in found]
    if as_json:
        print_json(lines)
    elif wait:
        for line in lines:
            reason = f": {line['reason']}" if line["reason"] else ""
            say(f"{line['instance_id']} is {line['state']} at {line['address']}{reason}")
    context.exit(1 if wait and any(line["state"] != "running" for line in lines) else 0)


def _image_of_environment(access: Access) -> str:
    import os

    from appliance.ec2_client import read_env_file

    found = os.environ.get("ANYNODE_IMAGE") or read_env_file(access.folder / ENV_NAME).get(
        "ANYNODE_IMAGE"
    )
    if not found:
        raise click.UsageError("Say which --image; `anynode image list` shows what there is.")
    return found


def _wait(client: Ec2Client, ids: list[str]) -> list[dict[str, Any]]:
    from appliance.errors import Unavailable

    end = time.monotonic() + WAIT_S
    while True:
        found = client.instances(InstanceIds=ids)
        if all(one["State"]["Name"] != "pending" for one in found):
            return found
        if time.monotonic() > end:
            raise Unavailable(
                f"Not all instances ran within {WAIT_S:g} s.",
                hint=f"Look at `anynode trace {ids[0]}`.",
            )
        time.sleep(_POLL_S)


def _line(one: dict[str, Any]) -> dict[str, str]:
    return {
        "instance_id": one["InstanceId"],
        "state": one["State"]["Name"],
        "address": one.get("PrivateIpAddress", ""),
        "reason": one.get("StateReason", {}).get("Message", ""),
    }
