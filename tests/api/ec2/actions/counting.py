"""How many statements a call takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from tests.api.front import Front


@contextmanager
def counted_statements(front: Front) -> Iterator[list[str]]:
    """Collect the statements that the store runs meanwhile, transactions' frames left out."""
    seen: list[str] = []

    def remember(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if not statement.startswith(("BEGIN", "COMMIT", "PRAGMA")):
            seen.append(statement)

    event.listen(front.store.engine, "before_cursor_execute", remember)
    try:
        yield seen
    finally:
        event.remove(front.store.engine, "before_cursor_execute", remember)
