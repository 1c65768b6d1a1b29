from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import CommandFailed, cause_chain
from appliance.run import MIB, Limits, Secret, command_line, run, spawn_daemon

PASSWORD = "hunter2-and-more"


def python(program: str) -> list[str]:
    """Return a command that runs a Python program."""
    return [sys.executable, "-c", program]


def is_alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until something is so."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class TestRun:
    def test_returns_what_was_printed(self) -> None:
        assert run(["echo", "a b"], deadline_s=20) == "a b\n"

    def test_passes_standard_input(self) -> None:
        assert run(["cat"], stdin="text", deadline_s=20) == "text"
        assert run(["cat"], stdin=b"\x80", deadline_s=20) == "\ufffd"
        assert run(["cat"], deadline_s=20) == ""

    def test_more_than_a_pipe_holds_goes_both_ways(self) -> None:
        text = "0123456789abcdef" * 65536
        assert run(["cat"], stdin=text, deadline_s=60) == text

    def test_a_program_may_end_without_reading(self) -> None:
        assert run(["echo", "done"], stdin="x" * MIB, deadline_s=20) == "done\n"

    def test_environment_is_added(self) -> None:
        program = "import os; print(os.environ['LC_ALL'], os.environ['MINE'], 'PATH' in os.environ)"
        assert run(python(program), environment={"MINE": "1"}, deadline_s=20) == "C 1 True\n"

    def test_accepts_a_status_that_is_no_failure(self) -> None:
        assert run(["false"], accept=(0, 1), deadline_s=20) == ""

    def test_does_not_wait_for_a_daemon_that_holds_the_output(self, tmp_path: Path) -> None:
        written = tmp_path / "pid"
        before = time.monotonic()
        script = f"sleep 60 & echo $! > {written}; echo started"
        try:
            assert run(["sh", "-c", script], deadline_s=30) == "started\n"
            assert time.monotonic() - before < 20
            assert is_alive(int(written.read_text()))
        finally:
            os.kill(int(written.read_text()), signal.SIGKILL)


class TestFailure:
    def test_shows_a_line_to_paste_status_and_last_lines(self) -> None:
        with pytest.raises(CommandFailed) as caught:
            run(["sh", "-c", "seq 100 >&2; exit 3"], deadline_s=20)
        lines = caught.value.message.splitlines()
        assert lines[0] == "Command failed with exit status 3: sh -c 'seq 100 >&2; exit 3'"
        assert [line.strip() for line in lines[1:]] == [str(number) for number in range(81, 101)]

    def test_shows_standard_output_when_there_is_no_error(self) -> None:
        with pytest.raises(CommandFailed, match="only this"):
            run(["sh", "-c", "echo only this; exit 1"], deadline_s=20)

    def test_names_the_signal(self) -> None:
        with pytest.raises(CommandFailed, match="signal SIGKILL"):
            run(["sh", "-c", "kill -9 $$"], deadline_s=20)

    @pytest.mark.parametrize("limits", [None, Limits(nice=1)])
    def test_missing_program_has_a_hint(self, limits: Limits | None) -> None:
        with pytest.raises(CommandFailed, match="Could not start 'no-such-program'") as caught:
            run(["no-such-program"], limits=limits, deadline_s=20)
        assert "Install" in caught.value.hint

    def test_deadline_ends_the_whole_group(self, tmp_path: Path) -> None:
        written = tmp_path / "pids"
        script = f"sleep 60 & echo $! $$ > {written}.new; mv {written}.new {written}; wait"
        with pytest.raises(CommandFailed, match="ran into its deadline: sh -c"):
            run(["sh", "-c", script], deadline_s=2)
        pids = [int(pid) for pid in written.read_text().split()]
        wait_until(lambda: not any(map(is_alive, pids)), "a process outlived the deadline")

    def test_deadline_holds_for_one_that_only_prints(self) -> None:
        with pytest.raises(CommandFailed, match="deadline"):
            run(["sh", "-c", "while :; do echo x >&2; done"], deadline_s=0.5)

    def test_output_is_bounded(self) -> None:
        with pytest.raises(CommandFailed, match="printed more than 1048576 bytes: head"):
            run(["head", "-c", "4M", "/dev/zero"], output_limit_bytes=MIB, deadline_s=20)

    def test_only_the_end_of_errors_is_kept(self) -> None:
        program = "import sys; sys.stderr.write('x' * (8 << 20) + '\\nthe end'); sys.exit(1)"
        with pytest.raises(CommandFailed, match=r"the end$") as caught:
            run(python(program), deadline_s=60)
        assert len(caught.value.message) < 2000

    def test_leaves_no_descriptor_open(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for command in (["true"], ["false"], ["no-such-program"], ["sleep", "9"]):
            for stdin in ("", "text"):
                try:
                    run(command, stdin=stdin, deadline_s=0.2)
                except CommandFailed:
                    continue
        assert len(os.listdir("/proc/self/fd")) == before


class TestSecrets:
    """A secret shows in no error and no log, however the program fails."""

    @pytest.fixture(autouse=True)
    def _log_all(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)

    @pytest.mark.parametrize(
        "script",
        [
            'echo "bad password $1 $GIVEN $(cat)" >&2; exit 1',
            'echo "bad password $1 $GIVEN $(cat)"; exit 1',
            "sleep 60",
            "yes",
        ],
    )
    def test_is_masked(self, script: str, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(CommandFailed) as caught:
            run(
                ["sh", "-c", script, "sh", Secret(PASSWORD)],
                stdin=Secret(f"{PASSWORD}\nsecond {PASSWORD}"),
                environment={"GIVEN": Secret(PASSWORD)},
                output_limit_bytes=1000,
                deadline_s=0.5,
            )
        shown = "\n".join((repr(caught.value), *cause_chain(caught.value), caplog.text))
        assert PASSWORD not in shown
        assert "***" in shown

    def test_of_a_program_that_is_missing(self) -> None:
        with pytest.raises(CommandFailed) as caught:
            run(["no-such-program", Secret(PASSWORD)], deadline_s=1)
        assert PASSWORD not in "".join(cause_chain(caught.value))

    def test_the_program_gets_it(self) -> None:
        assert run(["echo", Secret(PASSWORD)], deadline_s=20) == f"{PASSWORD}\n"

    def test_repr_masks(self) -> None:
        assert PASSWORD not in repr([Secret(PASSWORD)])

    def test_line_quotes_what_a_shell_would_split(self) -> None:
        assert command_line(["a b", Path("/x"), Secret(PASSWORD)]) == "'a b' /x ***"


class TestLimits:
    def test_are_those_of_the_child_alone(self) -> None:
        program = (
            "import os, resource as r; print(r.getrlimit(r.RLIMIT_AS)[0],"
            " r.getrlimit(r.RLIMIT_CPU)[0], r.getrlimit(r.RLIMIT_FSIZE)[0], os.nice(0))"
        )
        own = run(python(program), deadline_s=20)
        limits = Limits(address_space_bytes=1 << 30, cpu_s=7, file_size_bytes=1 << 20, nice=5)
        limited = run(python(program), limits=limits, deadline_s=20).split()
        assert limited[:3] == ["1073741824", "7", "1048576"]
        assert int(limited[3]) == min(int(own.split()[3]) + 5, 19)
        assert run(python(program), deadline_s=20) == own

    def test_a_file_that_grows_too_large_is_a_failure(self, tmp_path: Path) -> None:
        target = tmp_path / "file"
        with pytest.raises(CommandFailed, match=r"prlimit --fsize=1000 dd"):
            run(
                ["dd", "if=/dev/zero", f"of={target}", "bs=4096", "count=1"],
                limits=Limits(file_size_bytes=1000),
                deadline_s=20,
            )
        assert target.stat().st_size <= 1000


class TestDaemon:
    def test_has_a_session_of_its_own_and_a_private_log(self, tmp_path: Path) -> None:
        log_path = tmp_path / "log"
        pid = spawn_daemon(["sh", "-c", "echo started; exec sleep 60"], log_path=log_path)
        try:
            assert os.getsid(pid) == pid
            wait_until(lambda: log_path.read_text() == "started\n", "the daemon wrote nothing")
            assert log_path.stat().st_mode & 0o777 == 0o600
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_missing_program(self, tmp_path: Path) -> None:
        with pytest.raises(CommandFailed, match="Could not start 'no-such-daemon'"):
            spawn_daemon(["no-such-daemon"], log_path=tmp_path / "log")
