"""The error tree: what was attempted, with what, and what to do about it.

Every error that a person may see is one of these. ``code`` is stable and documented in
``docs/reference/errors.md``; front doors translate it to their own vocabulary.
"""

from __future__ import annotations

from typing import ClassVar


class AnynodeError(Exception):
    """Base of all expected errors: printed as one sentence, never as a traceback.

    :param message: a sentence that says what was attempted, with what, and what is wrong.
    :param hint: what the reader can do about it; empty when there is nothing to do.
    :param code: a more exact code than the class's own, e.g. ``InvalidInstanceID.NotFound``.
    """

    code: ClassVar[str] = "Internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exact_code = code or self.code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class InputError(AnynodeError):
    """The request or command line is wrong; nothing was changed."""

    code = "BadInput"
    http_status = 400


class NotFound(AnynodeError):
    """The named thing does not exist, or is not the caller's to see."""

    code = "NotFound"
    http_status = 404


class Conflict(AnynodeError):
    """The state does not allow it: a duplicate, something in use, a wrong state."""

    code = "Conflict"
    http_status = 409


class Denied(AnynodeError):
    """The caller is not known, or may not do this.

    :param claimed: who the caller says to be, when that is fit to be written down.
    """

    code = "Denied"
    http_status = 403

    def __init__(self, message: str, *, hint: str = "", code: str = "", claimed: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.claimed = claimed


class LimitExceeded(AnynodeError):
    """A quota or a capacity is used up; nothing was taken."""

    code = "LimitExceeded"
    http_status = 400


class Unavailable(AnynodeError):
    """A part that is needed does not answer now (a deadline passed, a store is away); try again."""

    code = "Unavailable"
    http_status = 503


class ConfigError(AnynodeError):
    """A setting, a missing package or a missing permission keeps the program from working."""

    code = "Config"


class PluginError(AnynodeError):
    """A plugin is missing, doubled, of the wrong API version, or broke its contract."""

    code = "Plugin"


class CommandFailed(AnynodeError):
    """A program that was run failed; the message carries a line to paste and the last output."""

    code = "CommandFailed"


class Stale(AnynodeError):
    """The order or binding belongs to an epoch that is no longer current; drop it."""

    code = "Stale"
    http_status = 409


def cause_chain(error: BaseException) -> tuple[str, ...]:
    """Return the messages of an error and of its causes, outermost first; at most ten."""
    chain: list[str] = []
    told: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in told and len(chain) < 10:
        told.add(id(cause))
        chain.append(
            cause.message if isinstance(cause, AnynodeError) else f"{type(cause).__name__}: {cause}"
        )
        cause = cause.__cause__
    return tuple(chain)
