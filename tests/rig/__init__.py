"""A place of its own on this machine: run programs in it, and nothing of them is left.

A rig has its own network, mount, UTS and process namespaces. Its ``/run`` is its own, and so are
the places of libvirt under ``/etc`` and ``/var``; the rest of the file system is the machine's. A
node in a rig gets its state directory below ``rig.directory`` by its settings. A node that runs
on the machine, and a test that somebody else runs, never meet what is in a rig::

    with Rig("one") as rig:
        rig.run(["ip", "link", "add", "br0", "type", "bridge"])
        rig.start_libvirt()
        print(rig.python("-c", "import libvirt; print(libvirt.open('qemu:///system'))"))

The process namespace's first process waits on a pipe that the test holds. When the test leaves
the ``with`` block, or dies in whatever way, the pipe closes, that process ends, and the kernel
kills everything in the rig with it: libvirtd, the instances, daemons that went to the background.

``rig.directory`` is seen under the same path inside and outside; files that both sides use go
there. A daemon's socket in the rig's ``/run`` is reached from outside through
``rig.outside("/run/…")``. Several rigs become a cluster with :meth:`Rig.join`: one rig is the
switch, the others get an interface to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.rig.first import PLACES

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = ("--net", "--mount", "--uts", "--pid")


def wait_for(condition: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """Poll until ``condition`` answers something true and return it.

    :raises TimeoutError: it never did within ``deadline_s`` seconds; the text names ``what``.
    """
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {deadline_s:g} s in vain for {what}.")
        time.sleep(0.05)
    return answer


class Rig:
    """One isolated place; needs root. Use it as a context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = Path()
        self._first: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Rig:
        # QEMU runs as a user of its own and must be able to walk down to an instance's files.
        self.directory = Path(tempfile.mkdtemp(prefix=f"rig-{self.name}.", dir="/var/tmp"))
        self.directory.chmod(0o711)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self) -> None:
        command = [
            "unshare",
            *NAMESPACES,
            *("--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, str(Path(__file__).with_name("first.py"))),
            *(str(self.directory), self.name),
        ]
        self._first = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != b"ready\n":
            raise RuntimeError("The rig's first process did not come up; see standard error.")
        self.pid = _only_child(self._first.pid)

    def close(self) -> None:
        """End everything in the rig and remove its directory. Safe to repeat."""
        if self._first is not None:
            for pipe in (self._first.stdin, self._first.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                self._first.wait(10)
            except subprocess.TimeoutExpired:
                self._first.kill()
                self._first.wait()
            self._first = None
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def outside(self, path: str) -> Path:
        """Return where a file of one of the rig's own places is seen from outside."""
        for place in sorted(PLACES, key=len, reverse=True):
            if path == place or path.startswith(f"{place}/"):
                return (
                    self.directory / "places" / place[1:].replace("/", "-") / path[len(place) + 1 :]
                )
        return Path(path)

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs a program inside."""
        # --root: entering a mount namespace leaves a changed root, where this process has one.
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES, "--root", "--"]
        return [*enter, *map(str, words)]

    def popen(
        self,
        words: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside and return its process; use :meth:`signal` to signal it."""
        return subprocess.Popen(
            self.command(words),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
        )

    def signal(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        """Send a signal to a program that :meth:`popen` started, not to its wrapper."""
        if process.poll() is None:
            os.kill(self.pid_of(process), number)

    def pid_of(self, process: subprocess.Popen[bytes]) -> int:
        """Return the process id, seen from outside, of a program that :meth:`popen` started."""
        return _only_child(process.pid)

    def run(
        self,
        words: Sequence[str | Path],
        *,
        deadline_s: float = 60,
        is_checked: bool = True,
        given: str = "",
    ) -> str:
        """Run a program inside to its end and return its standard output.

        :param given: its standard input.

        :raises AssertionError: it failed and ``is_checked``; the text holds what it printed.
        """
        done = subprocess.run(
            self.command(words),
            input=given,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            cwd=ROOT,
            check=False,
        )
        if is_checked and done.returncode != 0:
            raise AssertionError(
                f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def python(self, *arguments: str | Path, deadline_s: float = 60) -> str:
        """Run this environment's Python inside and return its standard output."""
        return self.run([sys.executable, *arguments], deadline_s=deadline_s)

    def start_libvirt(self) -> str:
        """Start libvirt's daemons inside, as a node does, and return the URI for outside."""
        script = (
            "import sys, pathlib; from anynode_compute_libvirt.daemon import ensure_daemons; "
            "ensure_daemons(pathlib.Path(sys.argv[1]))"
        )
        daemons = self.directory / "daemons"
        daemons.mkdir(exist_ok=True)
        self.python("-c", script, daemons)
        return self.libvirt_uri

    @property
    def libvirt_uri(self) -> str:
        """The URI under which a program outside reaches the libvirtd inside."""
        return f"qemu+unix:///system?socket={self.outside('/run/libvirt/libvirt-sock')}"

    def join(self, switch: Rig, address: str) -> None:
        """Connect this rig to the bridge ``fabric`` of another one.

        The interface is called ``up0`` and gets the address, for example 10.9.0.1/24; the bridge
        is made when it is missing.
        """
        if "fabric" not in switch.run(["ls", "/sys/class/net"]).split():
            switch.run(["ip", "link", "add", "fabric", "type", "bridge"])
            switch.run(["ip", "link", "set", "fabric", "up"])
        peer = f"p{self.pid}"
        self.run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", peer])
        # The other end is moved from outside, where the process ids of both rigs are known.
        subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--net", "--"),
                *("ip", "link", "set", peer, "netns", str(switch.pid)),
            ],
            check=True,
        )
        switch.run(["ip", "link", "set", peer, "master", "fabric", "up"])
        self.run(["ip", "address", "add", address, "dev", "up0"])
        self.run(["ip", "link", "set", "up0", "up"])


def _only_child(pid: int) -> int:
    """Return the process whose parent is ``pid``: what unshare or nsenter forked."""

    def find() -> int:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path("/proc", entry, "stat").read_text()
                except OSError:
                    continue
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    return int(entry)
        return 0

    return int(wait_for(find, 10, f"the child of process {pid}"))
