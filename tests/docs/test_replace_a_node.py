"""Every ``anynode`` command of the page does what the page says, in its order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cluster import settings
from appliance.store import nodes
from tests.cluster.fakes import ALL_ROLES, HYPERVISOR_ROLES, FakeCluster, running, wait_until
from tests.services.postgresql import PostgreSQL, free_port
from tests.services.rabbitmq import Broker

PAGE = Path(__file__).parents[2] / "docs/how-to/replace-a-node.md"
HEARS_S = 60.0

pytestmark = [pytest.mark.faults("membership: a node replaced"), pytest.mark.timeout(240)]


def commands() -> list[list[str]]:
    """Return the words of the page's commands."""
    blocks = re.findall(r"^```\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found = re.findall(r"^anynode (.*)$", "\n".join(blocks), re.MULTILINE)
    return [line.split() for line in found]


class Replacing:
    """A cluster, and what happens beside the commands of the page."""

    def __init__(self, cluster: FakeCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.token = ""

    def run(self, words: list[str]) -> None:
        """Run a command of the page where the page says."""
        if words[0] == "join":
            self.join(words)
            return
        if words[0] == "evacuate":
            self.cluster["n3"].kill()
            self.cluster.wait_known("n3", is_up=False, seconds=90)
        done = self.cluster["n1"].run_cli(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        if words[0] == "token":
            self.token = done.stdout.strip()

    def join(self, words: list[str]) -> None:
        """Let a machine that has nothing yet join, without starting it."""
        node = self.cluster["n3"]
        text = (node.folder / "anynode.toml").read_text()
        text = text.replace(str(node.folder), str(self.folder))
        (self.folder / "anynode.toml").write_text(text)
        place = ("--address", "127.0.0.1", "--port", str(free_port()), "--no-start")
        command = [sys.executable, "-m", "appliance.cli", "--config", str(self.folder)]
        done = subprocess.run(
            [*command, *words, *place],
            input=f"{self.token}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert settings.read(settings.folder_of(self.folder / "state")).node_name == "n5"


def test_every_command_of_the_page_works(
    tmp_path: Path, postgresql: PostgreSQL, rabbitmq: Broker
) -> None:
    for name in ("n5", "cluster"):
        (tmp_path / name).mkdir()
    controller = {"sweep_every_s": 0.5, "progress_s": 3.0, "node_silence_s": 5.0}
    with running(
        tmp_path / "cluster", postgresql, rabbitmq.new_vhost(), controller=controller
    ) as cluster:
        cluster.add("n1", roles=ALL_ROLES)
        cluster.add("n2", roles=("controller", "network", *HYPERVISOR_ROLES))
        cluster.add("n3", roles=("scheduler", *HYPERVISOR_ROLES))
        cluster.start()
        one = Replacing(cluster, tmp_path / "n5")
        written = commands()
        assert len(written) == 9
        for words in written:
            one.run(words)
        assert [node.name for node in cluster.read(nodes.status)] == ["n1", "n2", "n5"]
        old = cluster["n3"]
        old.start()
        wait_until(
            lambda: "removed from it, says" in old.run_cli("status").stdout,
            lambda: f"it hears that it was removed\n{old.log[-3000:]}",
            HEARS_S,
        )
        assert "its roles end" in old.log
