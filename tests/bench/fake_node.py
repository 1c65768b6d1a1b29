"""A node's own process on fakes of kernel and hypervisor, and a client that costs it nothing."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from appliance import node_process, seal
from appliance.config import Config
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.store import Store, Transaction, identity, images, migrations
from appliance.store import setup as store_setup
from appliance.world import World
from tests.bench.figure import cpu_of

ROOT = Path(__file__).resolve().parents[2]
_MIB = 1 << 20
_UP_S = 60
_PLENTY = 1_000_000


class FakeNode:
    """One node with a project that may launch as much as it likes. Nothing of it is left."""

    def __init__(self, roles: Iterable[str] | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="anynode-bench-")
        self.directory = Path(self._temporary.name)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        self.config = msgspec.convert(_settings(self.directory, self.port, roles), Config)
        self._process: subprocess.Popen[bytes] | None = None
        self.store = self._make_store()
        self.image: images.Image = self.store.transaction(self._register_image)
        self.project_id, self._key = self.store.transaction(self._make_project)

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make_store(self) -> Store:
        self.config.state_dir.mkdir()
        store = Store(self.config.store_url, World())
        migrations.upgrade(store)
        store.transaction(lambda tx: store_setup.prepare(tx, self.config))
        return store

    def _register_image(self, tx: Transaction) -> images.Image:
        path = self.directory / "image.raw"
        path.write_bytes(bytes(_MIB))
        stored = ImageStore(self.config.images_dir).import_file(path, "raw", ImageLimits())
        new = images.NewImage(
            project_id=self.config.api.account_id,
            kind=images.MACHINE,
            name="small",
            format=stored.format,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            virtual_size_bytes=stored.virtual_size_bytes,
            is_public=True,
        )
        return images.create(tx, new)

    def _make_project(self, tx: Transaction) -> tuple[str, tuple[str, str]]:
        ceilings = msgspec.structs.asdict(self.config.quota)
        project = identity.create_project(tx, "bench", dict.fromkeys(ceilings, _PLENTY))
        identity.create_user(tx, "bench")
        identity.join_project(tx, "bench", "bench", "member")
        secrets = seal.load(seal.key_path(self.config.state_dir))
        return project.project_id, identity.create_access_key(tx, secrets, "bench", "bench")

    def start(self) -> float:
        """Start the node's process; return the seconds until its API answered."""
        path = self.directory / "anynode.json"
        path.with_suffix(".toml").write_text(_toml(msgspec.to_builtins(self.config)))
        began = time.monotonic()
        with (self.directory / "node.out").open("wb") as said:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "appliance.cli"),
                    *("--config", str(path.with_suffix(".toml"))),
                    *("run", "--log-file", str(self.directory / "node.log")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        wait_until(self._is_up, _UP_S)
        return time.monotonic() - began

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self.directory / "node.out").read_text())
        found = node_process.find(self.config.run_dir)
        return found is not None and found.is_up and node_process.answers(found)

    @property
    def pid(self) -> int:
        """The node's process."""
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU seconds that the node has used so far."""
        return cpu_of(self.pid)

    def client(self) -> Client:
        """Return a client with a connection of its own."""
        return Client(self.port, self.config.node.region, *self._key)

    def watch(self) -> Watch:
        """Return what looks into the node's store without its help."""
        return Watch(self.config.state_dir / "store.sqlite")

    def stop(self) -> None:
        """End the node's process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the node and remove what it had."""
        self.stop()
        self.store.close()
        self._temporary.cleanup()


class Client:
    """Signs and sends EC2 calls over one connection that stays open."""

    def __init__(self, port: int, region: str, access_key_id: str, secret: str) -> None:
        self._url = f"http://127.0.0.1:{port}/"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._auth = SigV4Auth(Credentials(access_key_id, secret), "ec2", region)

    def __call__(self, action: str, **parameters: object) -> str:
        """Call an action and return the reply; :raises RuntimeError: it was refused."""
        form = {"Action": action, "Version": "2016-11-15"}
        form |= {name.replace("_", "."): str(value) for name, value in parameters.items()}
        body = urlencode(form).encode()
        request = AWSRequest("POST", self._url, data=body)
        request.headers["Content-Type"] = "application/x-www-form-urlencoded; charset=utf-8"
        self._auth.add_auth(request)
        self._connection.request("POST", "/", body, dict(request.headers.items()))
        reply = self._connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise RuntimeError(f"{action} was answered with {reply.status}: {text}")
        return text

    def run(self, image_id: str, count: int = 1) -> list[str]:
        """Launch instances and return their ids."""
        reply = self(
            "RunInstances",
            ImageId=image_id,
            InstanceType="t2.nano",
            MinCount=count,
            MaxCount=count,
            ClientToken=os.urandom(16).hex(),
        )
        return re.findall(r"<instanceId>([^<]+)<", reply)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Watch:
    """Reads the states of instances from the store's file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False
        )

    def is_running(self, instance_id: str) -> bool:
        """Say whether an instance runs."""
        query = "SELECT 1 FROM instances WHERE id = ? AND state = 'running'"
        return self._connection.execute(query, (instance_id,)).fetchone() is not None

    def running(self) -> int:
        """Return how many instances run."""
        query = "SELECT count(*) FROM instances WHERE state = 'running'"
        return int(self._connection.execute(query).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def wait_until(is_so: Callable[[], bool], seconds: float, every_s: float = 0.005) -> None:
    """Wait for a condition; :raises TimeoutError: it did not come true in time."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        time.sleep(every_s)


def _settings(directory: Path, port: int, roles: Iterable[str] | None) -> dict[str, Any]:
    node: dict[str, Any] = {
        "name": "bench",
        "state_dir": str(directory / "state"),
        "run_dir": str(directory / "run"),
    }
    if roles:
        node["roles"] = list(roles)
    return {
        "node": node,
        "api": {"port": port},
        "network": {"type": "fake", "metadata": False, "cidr": "10.64.0.0/16"},
        "firewall": {"driver": "fake"},
        "compute": {"driver": "fake", "injection": ["none"]},
        "images": {"group": ""},
        "plugins": {
            "compute": {
                "fake": {"vcpus": _PLENTY, "memory_mib": _PLENTY * 1000, "disk_gib": _PLENTY * 100}
            }
        },
    }


def _toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return nested settings as TOML: tables of strings, numbers, booleans and lists of them."""
    own = [
        f"{name} = {msgspec.json.encode(value).decode()}"
        for name, value in values.items()
        if not isinstance(value, dict)
    ]
    tables = [
        _toml(value, f"{prefix}{name}.")
        for name, value in values.items()
        if isinstance(value, dict)
    ]
    head = [f"[{prefix[:-1]}]"] if prefix and own else []
    return "\n".join([*head, *own, *tables, ""])
