"""Logging: one line per event, readable by people, journald and grep.

A line is ``time level logger message field=value …``. Under journald the priority goes first and
the time is left to it. Values that are ``run.Secret`` are masked, and libraries that print
requests or statements when they debug are kept quiet.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from appliance.errors import ConfigError
from appliance.run import Secret

FIELDS = ("instance", "request", "step", "ms")
LARGEST_FILE_BYTES = 10 << 20
KEPT_FILES = 3
LONGEST_LINE = 64 << 10
"""Characters of a message that are logged: what somebody sent must not push out the rest."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_TALKATIVE = ("alembic", "botocore", "urllib3", "sqlalchemy", "cheroot", "pyroute2", "asyncio")
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class LineFormatter(logging.Formatter):
    """Makes one line of a record, tracebacks included."""

    def __init__(self, *, for_journal: bool = False) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = _message(record)
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if record.stack_info:
            text = f"{text}\n{record.stack_info}"
        fields = "".join(
            f" {name}={_value(name, getattr(record, name))}"
            for name in FIELDS
            if getattr(record, name, None) is not None
        )
        left_out = len(text) - LONGEST_LINE
        cut = f"{text[:LONGEST_LINE]}… and {left_out} characters" if left_out > 0 else text
        line = f"{record.levelname:<7} {record.name} {_one_line(cut)}{fields}"
        if self._for_journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{moment}.{int(record.msecs):03d}Z {line}"


def _message(record: logging.LogRecord) -> str:
    """Return the message with secrets masked, also when it does not fit its values."""
    values = record.args
    if isinstance(values, Mapping):
        masked: Any = {name: _mask(value) for name, value in values.items()}
    elif values:
        masked = tuple(_mask(value) for value in values)
    else:
        return str(record.msg)
    try:
        return f"{str(record.msg) % masked}"
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {masked}"


def _mask(value: object) -> object:
    return "***" if isinstance(value, Secret) else value


def _value(name: str, value: object) -> str:
    if name == "ms" and isinstance(value, float):
        return f"{value:.1f}"
    return _one_line(str(_mask(value)))


def _one_line(text: str) -> str:
    """Return a text that cannot begin a line of its own, whoever wrote it."""
    joined = text.rstrip("\n").replace("\\", "\\\\") if "\\n" in text else text.rstrip("\n")
    joined = joined.replace("\r", "\\r").replace("\n", "\\n")
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in joined)


class PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    """A log file that only its owner reads, and that never grows beyond its bounds."""

    def _open(self) -> IO[Any]:  # type: ignore[override]
        descriptor = os.open(
            self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def to_stderr(level: str) -> None:
    """Log to standard error, in journald's form when that is where it leads.

    :raises ConfigError: there is no such level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(for_journal=_leads_to_journal()))
    _install(handler, level)


def to_file(path: Path, level: str) -> None:
    """Log to a file: 10 MiB, then it is set aside; three that were set aside are kept.

    :raises ConfigError: there is no such level, or the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = PrivateRotatingFile(path, maxBytes=LARGEST_FILE_BYTES, backupCount=KEPT_FILES)
    except OSError as error:
        raise ConfigError(f"Could not write the log file {path}: {error.strerror}.") from error
    handler.setFormatter(LineFormatter())
    _install(handler, level)


def _install(handler: logging.Handler, level: str) -> None:
    """Make the handler the only one, and let nothing that fails in a thread go unheard."""
    wanted = level.upper()
    if wanted not in LEVELS:
        raise ConfigError(f"There is no log level {level!r}.", hint=f"Use {', '.join(LEVELS)}.")
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(wanted)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    threading.excepthook = _log_thread_end
    sys.excepthook = _log_end


def _log_thread_end(end: threading.ExceptHookArgs) -> None:
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        name = end.thread.name if end.thread else "?"
        logging.getLogger(__name__).error("thread %s ended", name, exc_info=end.exc_value)


def _log_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger(__name__).critical("the program ended", exc_info=(kind, error, trace))


def _leads_to_journal() -> bool:
    """Say whether standard error is the stream that systemd connected to journald."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
