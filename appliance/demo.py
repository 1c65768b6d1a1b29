"""The demo: a node of this machine, an image, a key and one instance that answers SSH.

Every part finds what an earlier run has left and goes on from there, so that a second run only
shows what there is, and one that was interrupted is simply run again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import node_process, run, seal
from appliance.config import CONFIG_NAME, Config
from appliance.ec2_client import (
    Ec2Client,
    Ec2Credentials,
    Ec2Refused,
    endpoint_of,
    read_env_file,
)
from appliance.env_file import path_line, write_whole
from appliance.errors import CommandFailed, ConfigError, NotFound, Unavailable
from appliance.image_import import Wanted, import_image
from appliance.images.store import Progress, ignore_progress
from appliance.node_process import NodeProcess
from appliance.store import Store, Transaction, audit, identity
from appliance.store.images import KERNEL, MACHINE, RAMDISK

PROJECT, USER, KEY_PAIR, INSTANCE_NAME = "demo", "admin", "demo", "demo"
KEY_TAG = "anynode-demo-key"
"""The tag that says which key an instance of the demo lets in."""

INSTANCE_TYPE = "m1.tiny"
COMMAND_LINE = "root=/dev/vda console=ttyS0 quiet"
LOGIN = "root"
LAUNCH_S = 180.0
SSH_S = 180.0
STOP_MARGIN_S = 60.0
"""How long stopping may take beyond the time that an instance has to shut down."""

IMAGE_FOLDER = Path("/var/cache/anynode/demo-image")
IMAGE_BUILDER = Path(__file__).resolve().parent.parent / "image" / "demo" / "build.py"
IMAGE_FILES = {KERNEL: "vmlinuz", RAMDISK: "initrd.img", MACHINE: "root.qcow2"}
_BUILD_S = 900.0
_SSH_TRY_S = 20.0
_ALIVE = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What the demo keeps beside its configuration file, all for its owner alone."""

    folder: Path
    config_name: str = CONFIG_NAME

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / self.config_name

    @property
    def env(self) -> Path:
        """The env file with the access key."""
        return self.folder / "anynode.env"

    @property
    def ssh_key(self) -> Path:
        """The private key that the instance lets in."""
        return self.folder / "demo_ed25519"

    @property
    def log(self) -> Path:
        """The node's log."""
        return (self.folder / "log" / "node.log").absolute()


def config_text(files: Files) -> str:
    """Return the configuration file of the demo: what differs from the defaults."""
    return (
        "# Made by `anynode demo up`; `anynode config` lists all settings.\n"
        "[node]\n"
        f"log_file = {json.dumps(str(files.log), ensure_ascii=False)}\n"
    )


def write_config(files: Files) -> bool:
    """Write the configuration file unless there is one; say whether it was written."""
    if files.config.exists():
        return False
    files.folder.mkdir(parents=True, exist_ok=True)
    write_whole(files.config, config_text(files), mode=0o644)
    return True


def check_root() -> None:
    """Refuse early what only root can do.

    :raises ConfigError: this is not root.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            "The demo makes a bridge, firewall rules and an instance on this machine, "
            "which only root may do.",
            hint="Run it as root, e.g. `sudo make run`.",
        )


def ensure_image_files() -> Path:
    """Return the folder of the demo image, built when it is not there. Takes a minute then.

    :raises ConfigError: it is not there, and there is nothing to build it with.
    :raises CommandFailed: the build failed.
    """
    if all((IMAGE_FOLDER / name).is_file() for name in IMAGE_FILES.values()):
        return IMAGE_FOLDER
    if not IMAGE_BUILDER.is_file():
        raise ConfigError(
            f"There is no demo image in {IMAGE_FOLDER}.",
            hint="A checkout builds it: `make image`.",
        )
    # Debian's own Python: the builder needs nothing else, and no environment of ours.
    run.run(["/usr/bin/python3", IMAGE_BUILDER, "--output", IMAGE_FOLDER], deadline_s=_BUILD_S)
    return IMAGE_FOLDER


def ensure_node(config: Config, config_path: Path) -> tuple[NodeProcess, bool]:
    """Return the node's process, and whether it had to be started.

    :raises CommandFailed: it ended while it started.
    :raises Unavailable: it does not come up.
    """
    running = node_process.find(config.run_dir)
    if running is None:
        return node_process.start(config, config_path), True
    end = time.monotonic() + node_process.START_S
    while not (running.is_up and node_process.answers(running)):
        if time.monotonic() > end or not running.is_alive:
            raise Unavailable(
                f"A node runs (process {running.pid}), but its API at {running.endpoint} does not "
                "answer.",
                hint=f"Its log is {running.log_path}.",
            )
        time.sleep(0.2)
        running = node_process.find(config.run_dir) or running
    return running, False


def ensure_identity(store: Store, config: Config) -> None:
    """Make the project and its administrator, unless they are there."""
    ceilings = {name: getattr(config.quota, name) for name in config.quota.__struct_fields__}

    def make(tx: Transaction) -> None:
        if PROJECT not in {one.name for one in identity.list_projects(tx)}:
            identity.create_project(tx, PROJECT, ceilings)
            audit.record_command(tx, audit.SETUP, "CreateProject", PROJECT)
        users = {one.name: one for one in identity.list_users(tx)}
        if USER not in users:
            users[USER] = identity.create_user(tx, USER)
            audit.record_command(tx, audit.SETUP, "CreateUser", USER)
        if PROJECT not in users[USER].memberships:
            identity.join_project(tx, USER, PROJECT, "admin")
            audit.record_command(tx, audit.SETUP, "AddUserToProject", f"{USER} {PROJECT} admin")

    store.transaction(make)


def ensure_images(
    store: Store, config: Config, folder: Path, progress: Progress = ignore_progress
) -> str:
    """Register kernel, ramdisk and disk of the demo image; return the id of the machine image."""

    def bring(kind: str, image_format: str, **more: Any) -> str:
        wanted = Wanted(kind=kind, name=f"demo-{kind}", format=image_format, is_public=True, **more)
        path = folder / IMAGE_FILES[kind]
        return import_image(store, config, path, wanted, PROJECT, progress).image.image_id

    kernel_id = bring(KERNEL, "kernel")
    ramdisk_id = bring(RAMDISK, "ramdisk")
    return bring(
        MACHINE,
        "qcow2",
        description="A small Linux for trying things out",
        kernel_id=kernel_id,
        ramdisk_id=ramdisk_id,
        kernel_command_line=COMMAND_LINE,
    )


def ensure_access_key(store: Store, config: Config, files: Files, image_id: str) -> Ec2Credentials:
    """Return a usable access key and keep it in the env file, with the id of the image.

    A key that cannot be kept is deleted again: nobody could ever use it.
    """
    known = read_env_file(files.env)
    credentials = Ec2Credentials(
        endpoint=endpoint_of(config),
        region=config.node.region,
        access_key_id=known.get("AWS_ACCESS_KEY_ID", ""),
        secret=known.get("AWS_SECRET_ACCESS_KEY", ""),
    )
    keys = seal.load(seal.key_path(config.state_dir))
    if _is_usable(store, keys, credentials):
        _write_env(files, credentials, image_id)
        return credentials

    def make(tx: Transaction) -> tuple[str, str]:
        key_id, secret = identity.create_access_key(tx, keys, USER, PROJECT)
        subject = f"{USER} {PROJECT} {key_id}"
        audit.record_command(tx, audit.SETUP, "CreateAccessKey", subject)
        return key_id, secret

    def unmake(tx: Transaction) -> None:
        identity.delete_access_key(tx, access_key_id)
        audit.record_command(tx, audit.SETUP, "DeleteAccessKey", access_key_id)

    access_key_id, secret = store.transaction(make)
    made = Ec2Credentials(
        endpoint=credentials.endpoint,
        region=credentials.region,
        access_key_id=access_key_id,
        secret=secret,
    )
    try:
        _write_env(files, made, image_id)
    except BaseException:
        store.transaction(unmake)
        raise
    return made


def _is_usable(store: Store, keys: seal.Seal, credentials: Ec2Credentials) -> bool:
    found = identity.StoreCredentials(store, keys).find(credentials.access_key_id)
    return found is not None and found.secret == credentials.secret


def _write_env(files: Files, credentials: Ec2Credentials, image_id: str) -> None:
    text = credentials.env_lines({"ANYNODE_IMAGE": image_id}) + path_line()
    if not files.env.exists() or files.env.read_text(encoding="utf-8") != text:
        write_whole(files.env, text, mode=0o600)


def ensure_rules(client: Ec2Client) -> None:
    """Let SSH and ping into the project's default group."""
    everywhere = [{"CidrIp": "0.0.0.0/0"}]
    for protocol, first, last in (("tcp", 22, 22), ("icmp", -1, -1)):
        permission = {
            "IpProtocol": protocol,
            "FromPort": first,
            "ToPort": last,
            "IpRanges": everywhere,
        }
        try:
            client.call(
                "AuthorizeSecurityGroupIngress", GroupName="default", IpPermissions=[permission]
            )
        except Ec2Refused as error:
            if error.exact_code != "InvalidPermission.Duplicate":
                raise


def ensure_key_pair(client: Ec2Client, files: Files) -> str:
    """Make the SSH key unless it is there, import it, and return its fingerprint.

    A key pair of that name with another key is replaced.
    """
    public_key = _public_key(files.ssh_key)
    blob = base64.b64decode(public_key.split()[1])
    fingerprint = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    known = client.call("DescribeKeyPairs", Filters=[{"Name": "key-name", "Values": [KEY_PAIR]}])[
        "KeyPairs"
    ]
    if known and known[0]["KeyFingerprint"].rstrip("=").removeprefix("SHA256:") == fingerprint:
        return fingerprint
    if known:
        client.call("DeleteKeyPair", KeyName=KEY_PAIR)
    client.call("ImportKeyPair", KeyName=KEY_PAIR, PublicKeyMaterial=public_key.encode())
    return fingerprint


def _public_key(path: Path) -> str:
    """Return the public half of the key in a file, which is made when it is missing."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        text = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        write_whole(path, text.decode(), mode=0o600)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(
            f"{path} is no SSH key.", hint="Delete it: the next run makes another."
        ) from error
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{public.decode()} {KEY_PAIR}"


def find_instance(client: Ec2Client, fingerprint: str) -> dict[str, Any] | None:
    """Return the newest instance of the demo that is alive and lets our key in."""
    found = client.instances(
        Filters=[
            {"Name": f"tag:{KEY_TAG}", "Values": [fingerprint]},
            {"Name": "instance-state-name", "Values": list(_ALIVE)},
        ]
    )
    return max(found, key=lambda one: one["LaunchTime"], default=None)


def launch_instance(client: Ec2Client, image_id: str, fingerprint: str, client_token: str) -> str:
    """Launch the instance of the demo and return its id; the same token is the same instance."""
    tags = [{"Key": "Name", "Value": INSTANCE_NAME}, {"Key": KEY_TAG, "Value": fingerprint}]
    answer = client.call(
        "RunInstances",
        ImageId=image_id,
        InstanceType=INSTANCE_TYPE,
        MinCount=1,
        MaxCount=1,
        KeyName=KEY_PAIR,
        ClientToken=client_token,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(answer["Instances"][0]["InstanceId"])


def wait_while_stopping(client: Ec2Client, instance_id: str, deadline_s: float) -> str:
    """Return the state of an instance once it is no longer stopping.

    :raises NotFound: it has vanished.
    :raises Unavailable: it was still stopping after the deadline.
    """
    end = time.monotonic() + deadline_s
    while (state := str(_describe(client, instance_id)["State"]["Name"])) == "stopping":
        if time.monotonic() > end:
            raise Unavailable(f"Instance {instance_id} did not stop within {deadline_s:g} s.")
        time.sleep(0.5)
    return state


def ssh_command(files: Files, address: str, *, is_batch: bool = False) -> list[str]:
    """Return the command that logs in: the host key of a demo is new each time."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    if is_batch:
        options += ["BatchMode=yes", "ConnectTimeout=5", "IdentitiesOnly=yes"]
    words = [word for option in options for word in ("-o", option)]
    return ["ssh", "-i", str(files.ssh_key), *words, f"{LOGIN}@{address}"]


def wait_for_ssh(
    files: Files,
    address: str,
    check: Callable[[], None],
    *,
    deadline_s: float = SSH_S,
) -> None:
    """Return once the instance lets our key in and runs a command.

    :param check: called before each try; raises when it has become pointless.
    :raises Unavailable: it did not within the deadline; the message says how the last try ended.
    """
    end = time.monotonic() + deadline_s
    while True:
        check()
        try:
            run.run([*ssh_command(files, address, is_batch=True), "true"], deadline_s=_SSH_TRY_S)
            return
        except CommandFailed as error:
            if time.monotonic() > end:
                last = str(error).strip().splitlines()[-1].strip()
                raise Unavailable(
                    f"SSH to {address} did not answer within {deadline_s:g} s: {last}"
                ) from error
        time.sleep(0.5)


def check_running(client: Ec2Client, instance_id: str) -> None:
    """Raise unless the instance runs.

    :raises Unavailable: it does not, and the message says why.
    """
    one = _describe(client, instance_id)
    state = one["State"]["Name"]
    if state != "running":
        reason = one.get("StateReason", {}).get("Message", "no reason was given")
        raise Unavailable(f"Instance {instance_id} is {state}: {reason}")


def _describe(client: Ec2Client, instance_id: str) -> dict[str, Any]:
    try:
        return client.instances(InstanceIds=[instance_id])[0]
    except (Ec2Refused, IndexError) as error:
        raise NotFound(f"Instance {instance_id} has vanished.") from error


def last_lines(text: str, count: int = 6) -> list[str]:
    """Return the last lines of a console that say something."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def remove_files(files: Files) -> list[str]:
    """Remove what the demo keeps beside its configuration; return what was removed.

    The configuration file stays when somebody has changed it.
    """
    removed = []
    for path in (files.env, files.ssh_key):
        if path.exists():
            path.unlink()
            removed.append(str(path))
    if files.config.exists() and files.config.read_text(encoding="utf-8") == config_text(files):
        files.config.unlink()
        removed.append(str(files.config))
    return removed
