"""What an error of a store means for who was in the middle of something."""

from __future__ import annotations

import traceback
from enum import Enum

from sqlalchemy import ExceptionContext


class Kind(Enum):
    """What can be done about an error of the store."""

    CONFLICT = "others were in the way: try again, they end"
    READ_ONLY = "it takes no writes on this connection: try again on a new one"
    AWAY = "it does not answer: try again as long as the caller waits"
    FAULT = "the store is at fault, and trying again is of no use"
    QUESTION = "what it was asked is at fault"


def conceal_values(context: ExceptionContext) -> None:
    """Leave the driver's sentence of an error: statements and values end up in logs."""
    error, orig = context.sqlalchemy_exception, context.original_exception
    # PostgreSQL says what clashed in a detail that holds the row's values.
    primary = getattr(getattr(orig, "diag", None), "message_primary", None)
    if primary:
        orig.args = (primary,)
    if error is not None:
        error.args, error.statement, error.params = (str(orig),), None, None
        error.code = None


def let_go(error: BaseException | None) -> None:
    """Forget what the calls that failed worked on: their cursors keep a connection open."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__
