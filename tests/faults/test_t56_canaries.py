"""T56: whatever fails, no secret comes to light but in its owner's own files."""

from __future__ import annotations

import base64
import json
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError
from click.testing import Result
from sqlalchemy import insert

from appliance import seal
from appliance.compute.launch import LAUNCH
from appliance.crash_points import FAIL_AT
from appliance.store import identity
from appliance.store.schema import outbox
from tests.api.test_server import post
from tests.cli.shell import Shell
from tests.faults.process import ProcessOnFakes
from tests.rig import wait_for

pytestmark = pytest.mark.faults("secrets: canaries", quick=True)

SECRET = "CanarySecretAccessKey0000000000000000001"
WRONG = "CanaryWrongSecretKey00000000000000000002"
SWAPPED = "CanarySwappedForTheKeyId0000000000000003"
USER_DATA = "#!/bin/sh\necho CanaryUserData0004\n"
TOKEN = "CanarySessionToken0005"
PASSWORD = "CanaryPassword0006"
IMPORTED = "CanaryImportedPrivateKey0007"
LETTER = "CanaryOfADeadLetter0008"
OF_USER_DATA = ("CanaryUserData0004", base64.b64encode(USER_DATA.encode()).decode().rstrip("="))
KEY_ID = "AKIACANARY0000000001"

STORE_URLS = (
    f"postgresql://anynode:{PASSWORD}@127.0.0.1:1/anynode",
    f"postgresql://anynode:x@{PASSWORD}:{PASSWORD}@127.0.0.1:1/anynode",
    f"mysql+nosuch://anynode:{PASSWORD}@127.0.0.1/anynode",
    f"nosuch://anynode:{PASSWORD}@127.0.0.1/anynode",
    f"anynode:{PASSWORD}@host",
    f"postgresql+psycopg://host/anynode?user=a&password={PASSWORD}",
)
COMMANDS = (
    *(("config",), ("config", "--changed", "--json"), ("config", "show", "store.url")),
    *(("status",), ("verify",), ("user", "list"), ("run",), ("--debug", "status")),
)


_session = boto3.session.Session()  # it keeps the model, which is slow to load


class Place:
    """A node with a user whose secret is known, and all that it and its commands have said."""

    def __init__(self, folder: Path) -> None:
        self.node = ProcessOnFakes(folder)
        self.shell: Shell = self.node.shell
        path = self.shell.config_path
        path.write_text(path.read_text().replace("[node]", '[node]\nlog_level = "DEBUG"', 1))
        self.node.set_up()
        keys = seal.load(seal.key_path(self.node.config.state_dir))
        with closing(self.shell.open_store()) as store:
            adopt = identity.adopt_access_key
            store.transaction(lambda tx: adopt(tx, keys, "admin", "demo", KEY_ID, SECRET))
        self.said: dict[str, str] = {}
        self.private_keys: list[str] = []
        self.instance_ids: list[str] = []

    @cached_property
    def ec2(self) -> Any:
        """A client whose keys are good."""
        return self.client()

    @cached_property
    def image_id(self) -> str:
        return str(self.ec2.describe_images()["Images"][0]["ImageId"])

    def client(self, key_id: str = KEY_ID, secret: str = SECRET, token: str | None = None) -> Any:
        return _session.client(
            "ec2",
            region_name="local-1",
            endpoint_url=f"http://127.0.0.1:{self.node.config.api.port}",
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=ClientConfig(proxies={}, retries={"total_max_attempts": 1}),
        )

    def refused(self, name: str, call: Callable[..., Any], **parameters: Any) -> None:
        """Make a call that must fail, and keep what was answered."""
        with pytest.raises(ClientError) as caught:
            call(**parameters)
        self.said[name] = f"{caught.value} {caught.value.response}"

    def sent(self, name: str, raw: bytes) -> None:
        """Send bytes that must be refused, and keep the answer."""
        place = ("127.0.0.1", self.node.config.api.port)
        received = b""
        with socket.create_connection(place, timeout=20) as peer:
            peer.sendall(raw.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            while piece := peer.recv(65536):
                received += piece
        assert received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), received
        self.said[name] = received.decode()

    def commanded(self, *words: str, **environment: str) -> Result:
        """Run a command with the secrets in its environment, and keep what it said."""
        env = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": WRONG, **environment}
        result = self.shell.try_run(*words, environment=env)
        trace = repr(result.exception) if result.exception else ""
        self.said[f"anynode {' '.join(words)} {len(self.said)}"] = result.output + trace
        return result

    def launch(self, name: str, **more: Any) -> str:
        made = self.ec2.run_instances(
            ImageId=self.image_id,
            InstanceType="t2.nano",
            MinCount=1,
            MaxCount=1,
            ClientToken=name,
            UserData=USER_DATA,
            **more,
        )
        self.instance_ids.append(made["Instances"][0]["InstanceId"])
        return self.instance_ids[-1]

    def wait_for(self, state: str, instance_id: str) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            answer = self.ec2.describe_instances(InstanceIds=[instance_id])
            one: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
            return one if one["State"]["Name"] == state else {}

        answer: dict[str, Any] = wait_for(found, 30, f"{instance_id} to be {state}")
        return answer

    @contextmanager
    def without(self, table: str) -> Iterator[None]:
        """Let a table of the store be missing."""
        path = self.node.config.state_dir / "store.sqlite"
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA legacy_alter_table = ON")
            connection.execute(f"ALTER TABLE {table} RENAME TO hidden")
            try:
                yield
            finally:
                connection.execute(f"ALTER TABLE hidden RENAME TO {table}")


class Processes:
    """Looks at the command lines and environments of a process's descendants."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: set[str] = set()

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self._look(self._top, is_top=True)

    def _look(self, pid: int, *, is_top: bool = False) -> None:
        try:
            folder = Path(f"/proc/{pid}")
            self.seen.add((folder / "cmdline").read_text(errors="replace"))
            if not is_top:
                self.seen.add((folder / "environ").read_text(errors="replace"))
            for task in (folder / "task").iterdir():
                for child in (task / "children").read_text().split():
                    self._look(int(child))
        except OSError:
            return  # it has ended


def test_t56_no_failure_shows_a_secret(tmp_path: Path) -> None:
    place = Place(tmp_path)
    points = ",".join(f"step.{step.name}.before@1" for step in LAUNCH)
    place.node.start(**{FAIL_AT: points, "AWS_SECRET_ACCESS_KEY": SECRET})
    try:
        assert place.node.is_running, place.node.last_words()
        with Processes(place.node.pid) as processes:
            fail_at_the_api(place)
            fail_to_launch(place)
            fail_in_the_store(place)
            fail_on_the_command_line(place)
            look_at_what_is_written_down(place)
        assert len(place.said) >= 30
        assert_nothing_is_shown(place, processes)
    finally:
        place.node.kill()


def fail_at_the_api(place: Place) -> None:
    ec2 = place.ec2
    wrong = place.client(secret=WRONG)
    place.refused("a wrong secret", wrong.describe_instances)
    place.refused("id and secret swapped", place.client(SWAPPED, KEY_ID).describe_instances)
    unknown = place.client("AKIANOBODY0000000000", WRONG)
    place.refused("an unknown key", unknown.describe_instances)
    place.refused("a session", place.client(token=TOKEN).describe_instances)
    image, wanted = place.image_id, {"MinCount": 1, "MaxCount": 1, "UserData": USER_DATA}
    place.refused("no such image", ec2.run_instances, ImageId="ami-12345678", **wanted)
    odd = {**wanted, "ImageId": image, "InstanceType": "x9.huge"}
    place.refused("no such type", ec2.run_instances, **odd)
    large = {**wanted, "ImageId": image, "UserData": USER_DATA * 700}
    place.refused("too much user data", ec2.run_instances, **large)
    key = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{IMPORTED}\n-----END OPENSSH PRIVATE KEY-----\n"
    place.refused("a private key", ec2.import_key_pair, KeyName="a", PublicKeyMaterial=key)
    one_line = f"ssh-ed25519 {IMPORTED} me@here"
    place.refused("a bad key", ec2.import_key_pair, KeyName="a", PublicKeyMaterial=one_line)
    place.private_keys.append(ec2.create_key_pair(KeyName="mine")["KeyMaterial"])
    place.refused("a key again", ec2.create_key_pair, KeyName="mine")
    form = f"Action=RunInstances&UserData={quote(OF_USER_DATA[1])}&SecretAccessKey={SECRET}"
    query = f"GET /?{form}&X-Amz-Security-Token={TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n"
    for name, raw in {
        "a query": query.encode(),
        "an unsigned form": post(form.encode()),
        "another path": f"GET /{SECRET} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "basic": post(form.encode(), f"Authorization: Basic {SECRET}"),
        "a secret for a signature": post(
            b"Action=X",
            f"Authorization: AWS4-HMAC-SHA256 Credential={SWAPPED}, SignedHeaders=host, "
            f"Signature={SECRET}",
        ),
        "version 2": post(f"{form}&SignatureVersion=2&AWSAccessKeyId={SWAPPED}".encode()),
        "too large": post(form.encode() + b"&a=" + b"b" * 100_000),
        "too many": post(form.encode() + b"&a=b" * 1_100),
        "no header": f"GET / HTTP/1.1\r\nHost: x\r\n{SECRET}\r\n\r\n".encode(),
        "no request": f"{SECRET} {TOKEN}\r\n\r\n".encode(),
    }.items():
        place.sent(name, raw)


def fail_to_launch(place: Place) -> None:
    for step in LAUNCH:
        one = place.wait_for("terminated", place.launch(step.name))
        assert one["StateReason"]["Message"]
        place.said[f"launch fails at {step.name}"] = str(one)
    running = place.launch("lives")
    place.wait_for("running", running)
    change = place.ec2.modify_instance_attribute
    again = {"InstanceId": running, "UserData": {"Value": USER_DATA}}
    place.refused("user data of what runs", change, **again)
    repeated = {"ImageId": place.image_id, "MinCount": 1, "MaxCount": 1, "ClientToken": "lives"}
    run = place.ec2.run_instances
    place.refused("other user data", run, **repeated, UserData=f"{USER_DATA}#")


def fail_in_the_store(place: Place) -> None:
    with place.without("key_pairs"):
        place.refused("no table of keys", place.ec2.create_key_pair, KeyName="other")
    with place.without("reservations"):
        with pytest.raises(ClientError) as caught:
            place.launch("nowhere")
        place.said["no table of instances"] = str(caught.value.response)
    bodies = (f'{{"x": "{LETTER}', f'{{"reservation_id": ["{LETTER}"]}}')
    row = {"topic": "scheduler", "lane": "", "kind": "Place", "created_at": 1.0}
    rows = [{**row, "id": f"m{at}", "body": body.encode()} for at, body in enumerate(bodies)]
    with closing(place.shell.open_store()) as store:
        store.transaction(lambda tx: tx.execute(insert(outbox), rows))
    # Any message wakes whoever looks at the queue.
    place.wait_for("running", place.launch("after"))

    def given_up() -> bool:
        said = place.commanded("messages", "--json")
        return len(json.loads(said.stdout)["dead_letters"]) == 2

    wait_for(given_up, 20, "the letters to be given up")


def fail_on_the_command_line(place: Place) -> None:
    bad = place.image_id.replace("ami-", "ami-0")
    for words in (
        ("launch", "--image", bad),
        ("console", "i-12345678"),
        ("--debug", "console", "i-12345678"),
        ("key", "create", "nobody", "demo"),
        ("key", "delete", KEY_ID + "X"),
        ("demo",),
    ):
        place.commanded(*words)
    original = place.shell.config_path.read_text()
    try:
        for number, url in enumerate(STORE_URLS):
            for words in COMMANDS[3 if number else 0 :: 2]:
                place.shell.config_path.write_text(f'{original}\n[store]\nurl = "{url}"\n')
                assert "Traceback" not in place.commanded(*words).output
        place.shell.config_path.write_text(f'{original}\n[bus]\nurl = "amqp://a:{PASSWORD}@b:1/"\n')
        for words in (*COMMANDS[:3], ("run",)):
            place.commanded(*words)
        place.shell.config_path.write_text(f'{original}\n[store]\nurl = "{PASSWORD}\n')
        place.commanded("status")
        place.shell.config_path.write_text(f'{original}\n[store]\npassword = "{PASSWORD}"\n')
        place.commanded("status")
    finally:
        place.shell.config_path.write_text(original)


def look_at_what_is_written_down(place: Place) -> None:
    for one in place.instance_ids:
        place.commanded("trace", one)
        place.commanded("explain", one)
    for words in (("audit",), ("audit", "--json"), ("messages",), ("instances", "--json")):
        place.commanded(*words)
    place.commanded("key", "list", "--json")
    place.commanded("verify", "--json")


def assert_nothing_is_shown(place: Place, processes: Processes) -> None:
    key_path = seal.key_path(place.node.config.state_dir)
    (key_of_seal,) = json.loads(key_path.read_bytes())["keys"].values()
    bodies = [line for text in place.private_keys for line in text.splitlines()[1:-1]]
    assert bodies
    nowhere = [SECRET, WRONG, SWAPPED, TOKEN, PASSWORD, IMPORTED, *bodies]
    own_files_only = [*OF_USER_DATA, LETTER, key_of_seal]
    for name, text in place.said.items():
        assert_without(text, [*nowhere, *own_files_only], name)
    for text in processes.seen:
        assert_without(text, [*nowhere, *own_files_only], text)
    seen = 0
    for folder, _, files in os.walk(place.node.folder):
        for name in files:
            path = Path(folder, name)
            text = path.read_bytes().decode("latin-1")
            assert_without(text, nowhere, str(path))
            holds = [each for each in own_files_only if each in text]
            seen += len(holds)
            if holds:
                assert path.stat().st_mode & 0o077 == 0, f"{path} shows {holds}"
                assert path.suffix != ".log", f"{path} shows {holds}"
                assert key_of_seal not in holds or path == key_path
    # What is looked for is really there to be found.
    assert seen >= 4


def assert_without(text: str, canaries: list[str], where: str) -> None:
    found = [canary for canary in canaries if canary in text]
    assert not found, f"{where} shows {found}: {text[:3000]}"
