"""Log lines."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import log
from appliance.errors import ConfigError
from appliance.run import Secret

LOGGER = logging.getLogger("appliance.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the logging of the test runner back."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, threading.excepthook, sys.excepthook)
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, threading.excepthook, sys.excepthook = before[0], before[2], before[3]
    root.setLevel(before[1])
    logging.raiseExceptions = True
    logging.captureWarnings(False)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_line_with_fields(tmp_path: Path) -> None:
    path = tmp_path / "log" / "node.log"
    log.to_file(path, "INFO")
    LOGGER.debug("not this")
    LOGGER.info("built", extra={"instance": "i-1", "request": "r-1", "step": "define", "ms": 1.25})
    (line,) = lines(path)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    appliance\.test built "
        r"instance=i-1 request=r-1 step=define ms=1\.2",
        line,
    )


def test_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    log.to_file(path, "INFO")
    LOGGER.info("a\nb %s", "c\r\n2023-11-14 ERROR forged\x1b[2J")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        LOGGER.exception("it failed")
    first, second = lines(path)
    assert first.endswith("a\\nb c\\r\\n2023-11-14 ERROR forged?[2J")
    assert "it failed\\nTraceback" in second
    assert "ValueError: two\\nlines" in second


def test_no_line_is_without_end(tmp_path: Path) -> None:
    log.to_file(tmp_path / "log", "INFO")
    logging.getLogger("x").info("%s", "y" * (1 << 20))
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert len(line) < log.LONGEST_LINE + 200
    assert line.endswith(f"… and {(1 << 20) - log.LONGEST_LINE} characters")


def test_secrets_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    log.to_file(path, "INFO")
    LOGGER.info("key %s", Secret("hush"))
    LOGGER.info("key %(key)s", {"key": Secret("hush")})
    LOGGER.info("wrong %d", Secret("hush"))
    LOGGER.info("field", extra={"request": Secret("hush")})
    assert "hush" not in path.read_text()
    assert path.read_text().count("***") == 4


def test_libraries_stay_quiet(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    log.to_file(path, "DEBUG")
    logging.getLogger("botocore.auth").debug("StringToSign")
    logging.getLogger("sqlalchemy.engine").info("SELECT")
    LOGGER.debug("seen")
    assert len(lines(path)) == 1


def test_file_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LARGEST_FILE_BYTES", 2000)
    path = tmp_path / "node.log"
    path.touch(mode=0o644)
    log.to_file(path, "INFO")
    for number in range(200):
        LOGGER.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        *("node.log", "node.log.1", "node.log.2", "node.log.3")
    ]
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size <= 2000


def test_what_ends_a_thread_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    log.to_file(path, "INFO")

    def fail() -> None:
        raise ZeroDivisionError("by zero")

    thread = threading.Thread(target=fail, name="lane-1")
    thread.start()
    thread.join()
    (line,) = lines(path)
    assert "ERROR   appliance.log thread lane-1 ended" in line
    assert "by zero" in line


def test_journal_gets_priorities_and_no_time() -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "WARNING", "levelno": logging.WARNING, "msg": "careful"}
    )
    assert log.LineFormatter(for_journal=True).format(record) == "<4>WARNING x careful"


def test_level_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no log level 'LOUD'"):
        log.to_stderr("LOUD")


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Could not write the log file"):
        log.to_file(tmp_path / "file" / "node.log", "INFO")
