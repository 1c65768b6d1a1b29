"""Errors on their way: what whoever was asked has raised, raised anew where it was asked."""

from __future__ import annotations

import logging

import msgspec
from msgspec import Struct

from appliance import errors
from appliance.errors import AnynodeError, cause_chain

log = logging.getLogger(__name__)

FAILURE = "!"
"""The kind of an answer that is an error; no message has that name."""

LONGEST_TEXT, MOST_CAUSES = 1000, 10
"""Characters of a text, and texts, that are taken over from who could not answer."""

_KINDS: dict[str, type[AnynodeError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AnynodeError)
}


class _Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: str
    message: str
    hint: str = ""
    code: str = ""
    causes: tuple[str, ...] = ()


def encode(error: BaseException) -> bytes:
    """Return the body of an answer that says what went wrong."""
    if isinstance(error, AnynodeError):
        failure = _Failure(
            kind=type(error).__name__,
            message=error.message,
            hint=error.hint,
            code=error.exact_code,
            causes=cause_chain(error)[1:],
        )
    else:
        log.error("a question could not be answered", exc_info=error)
        failure = _Failure(kind=AnynodeError.__name__, message="It could not be answered.")
    return msgspec.json.encode(failure)


def decode(body: bytes) -> AnynodeError:
    """Return the error of an answer."""
    try:
        failure = msgspec.json.decode(body, type=_Failure)
    except msgspec.DecodeError:
        return AnynodeError("A question was answered with an error that cannot be read.")
    kind = _KINDS.get(failure.kind, AnynodeError)
    message, hint = failure.message[:LONGEST_TEXT], failure.hint[:LONGEST_TEXT]
    error = kind(message, hint=hint, code=failure.code[:LONGEST_TEXT])
    cause: BaseException = error
    for text in failure.causes[:MOST_CAUSES]:
        cause.__cause__ = AnynodeError(text[:LONGEST_TEXT])
        cause = cause.__cause__
    return error
