"""A node in memory whose front door is open: what users do goes through the real HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as ClientConfig

from appliance import seal
from appliance.store import identity
from tests.api.front import free_port
from tests.chain.harness import ROLES, Chain, Machine, quicken

AMPLE = {"instances": 1000, "vcpus": 4000, "memory_mib": 10_000_000}
THREADS = 32


class OpenNode(Chain):
    """A :class:`Chain` with the ``api`` role, and a key to it."""

    def __init__(self, directory: Path, machine: Machine, **sections: dict[str, Any]) -> None:
        port = free_port()
        sections["node"] = {"roles": (*ROLES, "api"), **sections.get("node", {})}
        sections["api"] = {"port": port, "threads": THREADS, **sections.get("api", {})}
        super().__init__(directory, machine, **sections)
        keys = seal.load(seal.key_path(self.config.state_dir))

        def make(tx: Any) -> tuple[str, str]:
            identity.create_user(tx, "ada")
            identity.join_project(tx, "ada", "alpha", "member")
            return identity.create_access_key(tx, keys, "ada", "alpha")

        key_id, secret = self.node.store.transaction(make)
        self.ec2 = boto3.client(
            "ec2",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="local-1",
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=ClientConfig(
                proxies={}, retries={"total_max_attempts": 1}, max_pool_connections=64
            ),
        )

    def launch(self, count: int = 1, **more: Any) -> list[str]:
        """Ask for small instances and return their ids."""
        reply = self.ec2.run_instances(
            **{
                "ImageId": self.image.image_id,
                "InstanceType": "t2.nano",
                "MinCount": count,
                "MaxCount": count,
                **more,
            }
        )
        return [each["InstanceId"] for each in reply["Instances"]]

    def describe(self, *instance_ids: str) -> dict[str, dict[str, Any]]:
        """Return instances by id as DescribeInstances shows them."""
        pages = self.ec2.get_paginator("describe_instances").paginate(InstanceIds=instance_ids)
        return {
            one["InstanceId"]: one
            for page in pages
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
        }


MakeOpenNode = Callable[..., OpenNode]


@pytest.fixture
def open_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeOpenNode]:
    """A function that starts a node; ``capacity`` is the machine's, the rest are settings."""
    yield from open_nodes(tmp_path, monkeypatch)


def open_nodes(
    directory: Path, monkeypatch: pytest.MonkeyPatch, store_url: str = ""
) -> Iterator[MakeOpenNode]:
    """Yield what :func:`open_node` does, for a store of any kind."""
    made: list[OpenNode] = []
    quicken(monkeypatch)

    def make(capacity: dict[str, Any] | None = None, **sections: dict[str, Any]) -> OpenNode:
        machine = Machine(**{"memory_mib": 10_000_000, "vcpus": 10_000, **(capacity or {})})
        machine.install(monkeypatch)
        usual: dict[str, dict[str, Any]] = {"quota": AMPLE, "store": {"url": store_url}}
        node = OpenNode(directory, machine, **{**usual, **sections})
        made.append(node)
        return node

    yield make
    for node in made:
        node.faults.clear()
        node.stop()
