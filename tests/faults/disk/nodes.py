"""Whole nodes on disks that fail for a while; what runs in the process that has such a disk."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from appliance import verify
from appliance.errors import Unavailable
from appliance.store import timeline
from appliance.verify import environment
from tests.chain.harness import Chain, Machine, quicken, wait_until
from tests.faults.disk.cases import CAUSES
from tests.faults.disk.shim import Disk, fill, mount_tmpfs, remount
from tests.faults.open_node import AMPLE, OpenNode

SETTLED = ("running", "terminated", "stopped")
A_WHILE_S = 2.0
MIB = 1 << 20


def main(arguments: list[str]) -> None:
    """Run a case and print its answer."""
    name, folder, values = arguments
    answer = cast(Callable[..., Any], globals()[name])(Path(folder), *json.loads(values))
    sys.stdout.flush()
    print(json.dumps(answer))


class Trial:
    """A node with one instance that must never notice, and what is tried while the disk fails."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        (self.bystander, self.leaver) = chain.run_instances(2)
        chain.wait_for("running", self.bystander, self.leaver)
        self.printed = chain.machine.compute.compute_console(self.bystander, "", 10_000)
        self.ids: list[str] = []
        self.after: list[str] = []
        self.is_refused = False

    def attempt(self) -> None:
        """Launch two and terminate one; each is taken on, or refused as unavailable."""
        try:
            self.ids = self.chain.run_instances(2)
            self.chain.terminate(self.leaver)
        except Unavailable as error:
            self.is_refused = "The store" in str(error)
        self.watch()

    def watch(self) -> None:
        """Look for a while: what runs goes on behind its rules, and nothing else is open."""
        chain = self.chain
        try:
            wait_until(self._are_settled, "", A_WHILE_S)
        except (AssertionError, Unavailable):
            pass  # they wait for the disk
        self.assert_unnoticed()
        state = chain.machine.firewall.firewall_state()
        assert state.is_guarded
        ports = chain.machine.network.node.ports.values()
        up = {port.attached.tap for port in ports if port.is_up}
        assert up <= set(state.taps), f"{up} are up and only {state.taps} have rules"

    def assert_unnoticed(self) -> None:
        """Fail when the bystander was touched."""
        machine = self.chain.machine
        assert machine.running().get(self.bystander) == 1
        assert machine.compute.compute_console(self.bystander, "", 10_000) == self.printed

    def _are_settled(self) -> bool:
        return all(self.chain.get(one).state.value in SETTLED for one in self.ids)

    def _is_accepted(self) -> bool:
        """Launch one more; a connection that was opened on the bad disk may refuse it once."""
        try:
            self.after = self.chain.run_instances()
        except Unavailable:
            return False
        return True

    def recover(self, causes: tuple[str, ...], where: str) -> dict[str, Any]:
        """Wait until all is well again; return what became of the launches, and why."""
        chain = self.chain
        wait_until(self._are_settled, lambda: f"{[chain.get(one) for one in self.ids]}", 30)
        self.assert_unnoticed()
        found = {one: chain.get(one) for one in self.ids}
        for one, instance in found.items():
            if instance.state.value != "terminated":
                continue
            assert instance.reason
            assert instance.reason.code == "Server.InternalError"
            words = instance.reason.message
            assert any(cause in words for cause in causes), words
            assert where in words, words
            entries = chain.read(partial(timeline.of_instance, instance_id=one))
            (failed,) = [entry for entry in entries if entry.outcome == "failed"]
            assert any(cause in " ".join(failed.causes) for cause in causes), failed
        wait_until(self._is_accepted, "a launch is accepted again", 5)
        (after,) = self.after
        chain.wait_for("running", after)
        chain.terminate(after, self.leaver, *self.ids)
        chain.wait_for("terminated", after, self.leaver, *self.ids)
        chain.assert_clean()
        self.assert_unnoticed()
        left = {path.name for path in (chain.config.state_dir / "instances").iterdir()}
        assert left == {self.bystander}
        assert list(chain.machine.running()) == [self.bystander]
        return {
            "states": sorted(instance.state.value for instance in found.values()),
            "reasons": sorted(i.reason.message for i in found.values() if i.reason),
            "is_refused": self.is_refused,
        }


@contextmanager
def a_node(folder: Path, kind: type[Chain] = Chain, **sections: dict[str, Any]) -> Iterator[Any]:
    """Start a node with fakes on a folder and stop it in the end."""
    patch = pytest.MonkeyPatch()
    quicken(patch)
    machine = Machine(memory_mib=10_000_000)
    machine.install(patch)
    sections = {"quota": AMPLE, "compute": _compute(), **sections}
    folder.mkdir(parents=True, exist_ok=True)
    node = kind(folder, machine, **sections)
    try:
        yield node
    finally:
        node.faults.clear()
        node.stop()
        patch.undo()


def _compute() -> dict[str, Any]:
    return {
        "driver": "fake",
        "injection": ["configdrive"],
        "shutdown_s": 1.0,
        "inventory_every_s": 0.5,
        "retry_s": 0.2,
        "heartbeat_every_s": 0.5,
    }


def broken_for_a_while(folder: Path, places: list[str], code: int) -> dict[str, Any]:
    """Let all writes to a place fail for a while, one place after the other."""
    disk = Disk()
    answers: dict[str, Any] = {}
    for number, place in enumerate(places):
        try:
            with a_node(folder / f"{number}") as chain:
                trial = Trial(chain)
                with disk.failing(f"/{number}/state/{place}", code):
                    trial.attempt()
                    hits, last = disk.hits, disk.last
                answers[place] = trial.recover(CAUSES[code], str(chain.config.state_dir))
                answers[place] |= {"hits": hits, "last": last}
        except Exception:
            answers[place] = traceback.format_exc()
    return answers


def _codes(chain: Chain) -> set[str]:
    return {one.code for one in verify.check(chain.config)}


def really_full(folder: Path) -> dict[str, Any]:
    """Fill the node's file system up, and make room again."""
    mount_tmpfs(folder / "node", "64m")
    environment.LEAST_FREE_BYTES = MIB
    with a_node(folder / "node") as chain:
        trial = Trial(chain)
        assert "N3.DISK_FULL" not in _codes(chain)
        filler = fill(folder / "node")
        trial.attempt()
        assert "N3.DISK_FULL" in _codes(chain)
        filler.unlink()
        answer = trial.recover(CAUSES[errno.ENOSPC], str(folder))
        assert "N3.DISK_FULL" not in _codes(chain)
    return answer


def really_readonly(folder: Path, place: str) -> dict[str, Any]:
    """Let a file system below the node's state be mounted read-only, and writable again."""
    mounted = folder / "node" / "state" / place
    mount_tmpfs(mounted, "64m")
    with a_node(folder / "node") as chain:
        trial = Trial(chain)
        remount(mounted, "ro")
        trial.attempt()
        assert "N3.DISK_READ_ONLY" in _codes(chain)
        remount(mounted, "rw")
        answer = trial.recover(CAUSES[errno.EROFS], str(mounted))
        assert "N3.DISK_READ_ONLY" not in _codes(chain)
    return answer


def api_on_a_full_disk(folder: Path) -> dict[str, Any]:
    """Use the API while the store's file system is full: all that was accepted is kept."""
    mount_tmpfs(folder / "node", "64m")
    said: list[str] = []
    with a_node(folder / "node", OpenNode) as made:
        node = cast(OpenNode, made)
        accepted = set(node.launch(2))
        node.wait_for("running", *accepted)
        filler = fill(folder / "node")
        for _ in range(30):
            try:
                accepted.update(node.launch())
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                said.append(f"{status} {error.response['Error']['Code']}")
        assert set(node.describe(*accepted)) == accepted, "reading goes on"
        filler.unlink()
        wait_until(
            lambda: all(node.get(one).state.value in SETTLED for one in accepted), "all settle", 30
        )
        assert set(node.describe(*accepted)) == accepted
        (after,) = node.launch()
        node.wait_for("running", after)
        node.assert_clean()
    return {"said": said, "accepted": len(accepted)}


def each_write_of_a_life(folder: Path, text: str, code: int, first: int, step: int) -> list[str]:
    """Let one write of a launch and a removal fail, each step-th from the first on."""
    disk, calls = Disk(), []
    with a_node(folder / "node") as chain:
        bystander = chain.run_instances()[0]
        chain.wait_for("running", bystander)
        for nth in range(first, 2000, step):
            with disk.failing(f"/node/state/{text}", code, nth=nth, times=1):
                ids: list[str] = []
                try:
                    ids = chain.run_instances()
                    wait_until(
                        lambda ids=ids: chain.get(ids[0]).state.value in SETTLED,  # type: ignore[misc]
                        lambda ids=ids: f"{chain.get(ids[0])}",  # type: ignore[misc]
                    )
                    chain.terminate(*ids)
                    chain.wait_for("terminated", *ids)
                except Unavailable:
                    pass
                hits, last = disk.hits, disk.last
            if ids:
                chain.terminate(*ids)
                chain.wait_for("terminated", *ids)
            wait_until(lambda: list(chain.machine.running()) == [bystander], "only it runs")
            if not hits:
                break
            calls.append(last)
            if len(calls) % 10 == 0:
                chain.assert_clean()
        chain.assert_clean()
        assert chain.quota_used()["instances"] == 1
    return calls
