"""``anynode init``: a node becomes the first of a cluster, and its instance notices nothing."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import node_process
from appliance.cluster import services
from appliance.cluster.settings import folder_of, overlay, read
from tests.cli.shell import Shell
from tests.services.own import require_services
from tests.services.postgresql import free_port

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

_SETTINGS = """
[node]
name = "n1"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
[api]
port = {ports[0]}
[cluster]
address = "127.0.0.1"
port = {ports[1]}
store_port = {ports[2]}
bus_port = {ports[3]}
bus_admin_port = {ports[4]}
[network]
metadata = false
type = "fake"
[firewall]
driver = "fake"
[compute]
driver = "fake"
injection = ["none"]
[images]
group = ""
[plugins.compute.fake]
survives = true
[plugins.network.fake]
survives = true
[plugins.firewall.fake]
survives = true
"""


@pytest.fixture(scope="module")
def lone() -> Iterator[Shell]:
    """A lone node in the background; nothing of it is left."""
    require_services()
    folder = Path(tempfile.mkdtemp(prefix="anynode-init-", dir="/var/tmp"))
    folder.chmod(0o711)
    made = Shell(folder)
    ports = [free_port() for _ in range(5)]
    made.config_path.write_text(_SETTINGS.format(folder=folder, ports=ports))
    try:
        made.run("run", "--detach")
        yield made
    finally:
        process = node_process.find(made.config.run_dir)
        if process:
            node_process.stop(process)
        services.stop(made.config.state_dir, is_orderly=False)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def grown(lone: Shell) -> tuple[Shell, Any, str]:
    """The same node after ``init``, with the instance that it had before, and what was said."""
    lone.give_key()
    image_id = lone.import_image()
    lone.run("launch", "--image", image_id, "--wait")
    (launched,) = lone.json("instances")
    lone.fail("init", status=130)
    assert not services.store_of(lone.config.state_dir).exists
    planned = lone.run("init", "--dry-run")
    said = lone.run("init", "--yes")
    assert said.startswith(planned)
    return lone, launched, said


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def test_the_instance_goes_on(grown: tuple[Shell, Any, str]) -> None:
    shell, launched, said = grown
    (found,) = shell.json("instances")
    assert found == launched
    assert "copied the store" in said
    status = shell.json("status")
    assert status["is_up"]
    running = [one.process() for one in services.both(shell.config.state_dir)]
    assert [one["pid"] for one in status["services"]] == [one.pid for one in running if one]
    assert [node["name"] for node in status["nodes"]] == ["n1"]


def test_who_began_it_is_written_down(grown: tuple[Shell, Any, str]) -> None:
    shell, *_ = grown
    (entry,) = [one for one in shell.json("audit") if one["action"] == "InitCluster"]
    assert entry["actor"].startswith("operator ")
    assert entry["subject"].startswith("n1 ")
    assert "amqps://" in entry["subject"]
    told = read(folder_of(shell.config.state_dir))
    for url in (told.bus_url, told.store_url):
        assert url.partition("@")[0].rpartition(":")[2] not in entry["subject"]


def test_nothing_is_wrong_and_more_can_be_launched(grown: tuple[Shell, Any, str]) -> None:
    shell, _, _ = grown
    image_id = shell.json("instances")[0]["image_id"]
    (more,) = shell.json("launch", "--image", image_id, "--wait")
    assert more["state"] == "running"
    found = shell.json("verify", "--wait", "30")["findings"]
    assert [one for one in found if one["level"] == "error"] == []


def test_init_again_changes_nothing(grown: tuple[Shell, Any, str]) -> None:
    shell, _, _ = grown
    before = shell.json("status")["process"]["pid"]
    assert "is the first of a cluster already" in shell.run("init", "--yes")
    assert shell.json("status")["process"]["pid"] == before
    assert "other options" in shell.fail("init", "--yes", "--zone", "local-1b")


def test_no_password_is_to_be_seen(grown: tuple[Shell, Any, str]) -> None:
    shell, _, said = grown
    config = overlay(shell.config)
    hidden = [
        config.bus.url.partition("@")[0].rpartition(":")[2],
        config.store.url.partition("@")[0].rpartition(":")[2],
        services.broker_of(config.state_dir).settings().password,
    ]
    assert all(len(one) > 20 for one in hidden)
    places = {"what init said": said, "the settings": shell.run("config")}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            places[str(entry)] = entry.read_text(errors="replace")
        except OSError:
            continue
    for path in config.state_dir.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            places[str(path)] = path.read_text(errors="replace")
    for path in (*config.state_dir.glob("log/*"), *config.state_dir.glob("services/*/log/*")):
        places[str(path)] = path.read_text(errors="replace")
    seen = [where for where, text in places.items() if any(one in text for one in hidden)]
    assert seen == []


def test_the_node_starts_its_services_again(grown: tuple[Shell, Any, str]) -> None:
    shell, _, _ = grown
    service = services.store_of(shell.config.state_dir)
    process = service.process()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    # It is this process's child, as it was `init` that started it: nobody else can reap it.
    os.waitpid(process.pid, 0)
    seen = shell.json("status")
    if seen["source"] == "members":
        assert "store" in seen["problem"]
        assert [node["name"] for node in seen["nodes"]] == ["n1"]
    wait_until(lambda: shell.try_run("instances").exit_code == 0, "the API to answer again")


def test_teardown_leaves_nothing(grown: tuple[Shell, Any, str]) -> None:
    """The last of this module: the node is gone after it."""
    shell, _, _ = grown
    assert all(one.process() for one in services.both(shell.config.state_dir))
    shell.run("demo", "down")
    assert not folder_of(shell.config.state_dir).exists()
    left = {path.name for path in shell.folder.iterdir()} - {"blank.img", "anynode.toml"}
    assert left == set()
