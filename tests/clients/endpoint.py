"""An EC2 endpoint, and the environment in which a user's client finds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as ClientConfig

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "var/clients"
NODE = CLIENTS / "node/bin/node"
ANSIBLE = CLIENTS / "venv/bin/ansible-playbook"
COLLECTIONS = CLIENTS / "collections"
AWS = Path(sys.executable).with_name("aws")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the API is, and a home in which a client finds no other settings.

    :param variables: what the sandbox's env file exports.
    """

    variables: Mapping[str, str]
    home: Path

    @property
    def image_id(self) -> str:
        """An image that instances can be launched from."""
        return self.variables["ANYNODE_IMAGE"]

    def environment(self) -> dict[str, str]:
        """Return the environment of a client: the env file, and nothing else of this machine."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            **self.variables,
            "AWS_CONFIG_FILE": str(self.home / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.home / "no-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ansible_settings(self) -> dict[str, str]:
        """Return variables that let Ansible find its collection, and keep it out of real homes."""
        folder = self.home / "ansible"
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(folder),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_ASYNC_DIR": str(folder / "async"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def client(self, service: str) -> Any:
        """Return a client of boto3 that repeats nothing by itself."""
        return boto3.client(
            service,
            endpoint_url=self.variables["AWS_ENDPOINT_URL"],
            region_name=self.variables["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            config=ClientConfig(proxies={}, retries={"total_max_attempts": 1}),
        )

    def try_run(
        self, command: Sequence[str | Path], deadline_s: float = 60, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a client's program, whatever it ends with."""
        if not Path(command[0]).exists():
            pytest.fail(f"{command[0]} is missing: run `make clients`")
        return subprocess.run(
            command,
            cwd=self.home,
            env={**self.environment(), **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )

    def run(self, command: Sequence[str | Path], deadline_s: float = 60, **more: str) -> str:
        """Run a client's program and return what it printed.

        :raises AssertionError: it failed, with all that it said.
        """
        done = self.try_run(command, deadline_s, **more)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout
