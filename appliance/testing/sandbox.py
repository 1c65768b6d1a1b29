"""A sandbox for tests of programs that use EC2: a child process, from entering to leaving.

with Sandbox(zones="a,b") as sandbox:
    ec2 = sandbox.client("ec2")
    subprocess.run(["./deploy"], env={**os.environ, **sandbox.environment}, check=True)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance import node_process, run
from appliance.ec2_client import read_env_file
from appliance.errors import CommandFailed, ConfigError, Unavailable
from appliance.node_process import NodeProcess

START_S = 60.0
"""Seconds for the start: a second or two on a machine that has nothing else to do."""

STOP_S = 15.0
_POLL_S = 0.02
_SHOWN_CHARACTERS = 4000


class Sandbox:
    """An EC2 endpoint of one's own, empty at first; see ``anynode sandbox --help``.

    :param zones: letters that follow the region's name, or full names, with commas.
    :param nodes: machines to pretend; ``None`` for one per zone.
    :param transition_s: seconds that each change of an instance's power takes.
    :param types_file: TOML file of instance types.
    :param port: TCP port; 0 for one that is free.
    :param state: folder that keeps everything for the next time; ``None`` for one that goes.
    """

    def __init__(
        self,
        *,
        region: str = "us-east-1",
        zones: str = "a,b",
        nodes: int | None = None,
        account: str = "123456789012",
        transition_s: float = 0.0,
        types_file: Path | None = None,
        port: int = 0,
        state: Path | None = None,
    ) -> None:
        self._options = [
            *("--region", region, "--zones", zones, "--account", account),
            *("--transition", str(transition_s), "--port", str(port)),
            *(("--nodes", str(nodes)) if nodes is not None else ()),
            *(("--types", str(types_file)) if types_file else ()),
            *(("--state", str(state)) if state else ()),
        ]
        self._folder: Path | None = None
        self._process: NodeProcess | None = None
        self._environment: Mapping[str, str] = {}

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any EC2 client finds the sandbox and signs its calls."""
        if not self._environment:
            raise ConfigError("The sandbox does not run.", hint="Use it in a with statement.")
        return dict(self._environment)

    @property
    def endpoint(self) -> str:
        """The URL of the API."""
        return self.environment["AWS_ENDPOINT_URL"]

    @property
    def region(self) -> str:
        """The name of the region."""
        return self.environment["AWS_DEFAULT_REGION"]

    @property
    def image_id(self) -> str:
        """The id of an image that every client may launch."""
        return self.environment["ANYNODE_IMAGE"]

    @property
    def pid(self) -> int:
        """The number of the sandbox's process."""
        return self._process.pid if self._process else 0

    def client(self, service: str = "ec2", **options: Any) -> Any:
        """Return a botocore client of ``ec2`` or ``sts``, which is what boto3's clients are.

        :param options: what ``Session.create_client`` takes, e.g. ``config``.
        """
        from botocore.config import Config
        from botocore.session import Session

        variables = self.environment
        return Session().create_client(
            service,
            **{
                "region_name": variables["AWS_DEFAULT_REGION"],
                "endpoint_url": variables["AWS_ENDPOINT_URL"],
                "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
                # A proxy of the environment is for the world outside.
                "config": Config(proxies={}),
                **options,
            },
        )

    def start(self) -> None:
        """Start, and return when the API answers. It ends with this process at the latest.

        :raises CommandFailed: it ended at once; the message holds what it said.
        :raises Unavailable: it was not up within ``START_S`` seconds, and was ended.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="anynode-test-"))
        try:
            self._start(self._folder / "sandbox.env", self._folder / "sandbox.log")
        except BaseException:
            self.stop()
            raise

    def _start(self, env_path: Path, log_path: Path) -> None:
        pid = run.spawn_daemon(
            [
                *(sys.executable, "-m", "appliance.cli", "sandbox", *self._options),
                *("--env-file", env_path, "--end-with", str(os.getpid())),
            ],
            log_path=log_path,
        )
        ticks = node_process.start_ticks(pid)
        self._process = NodeProcess(pid=pid, started_ticks=ticks, started_at=0.0, version="")
        end = time.monotonic() + START_S
        while not env_path.exists():
            if not ticks or node_process.start_ticks(pid) != ticks:
                said = log_path.read_text(encoding="utf-8", errors="replace").strip()
                raise CommandFailed(f"The sandbox did not start: {said[-_SHOWN_CHARACTERS:]}")
            if time.monotonic() > end:
                raise Unavailable(f"The sandbox was not up within {START_S:g} s.")
            time.sleep(_POLL_S)
        self._environment = read_env_file(env_path)

    def stop(self) -> None:
        """End the process, and with it everything that was in the sandbox. Safe to repeat."""
        process, self._process, self._environment = self._process, None, {}
        if process:
            node_process.stop(process, STOP_S)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
