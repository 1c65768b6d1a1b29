"""Tokens with which machines join: each works once, for a while, and until it is revoked."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sqlalchemy import Row, delete, insert, select, update

from appliance.cluster import tokens
from appliance.cluster.tokens import Token
from appliance.errors import Conflict, Denied, InputError, NotFound
from appliance.store import Transaction
from appliance.store.schema import join_tokens

_KEPT_S = 30 * 86400.0


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """A token as it is stored, without its secret. ``used_by`` is a node's id.

    ``state`` is ``open``, ``used``, ``expired`` or ``revoked``; ``node_name`` is empty where any
    machine may use it.
    """

    token_id: str
    state: str
    node_name: str
    created_by: str
    created_at: float
    expires_at: float
    used_at: float | None
    used_by: str | None


def create(
    tx: Transaction, token: Token, *, created_by: str, valid_s: float, node_name: str = ""
) -> None:
    """Let a token be used once; only a hash of its secret is stored.

    :raises InputError: it would be valid for too long, or not at all.
    """
    if not 0 < valid_s <= tokens.LONGEST_S:
        raise InputError("A token is valid for at least a moment, and for 30 days at most.")
    tx.execute(delete(join_tokens).where(join_tokens.c.expires_at < tx.now - _KEPT_S))
    tx.execute(
        insert(join_tokens).values(
            id=token.token_id,
            secret_sha256=tokens.hash_of(token.secret),
            node_name=node_name,
            created_by=created_by,
            created_at=tx.now,
            expires_at=tx.now + valid_s,
        )
    )


def list_all(tx: Transaction) -> list[JoinToken]:
    """Return all tokens of the last 30 days, the newest first."""
    query = select(join_tokens).order_by(join_tokens.c.created_at.desc(), join_tokens.c.id)
    return [
        JoinToken(
            token_id=row.id,
            state=_state(row, tx.now),
            node_name=row.node_name,
            created_by=row.created_by,
            created_at=row.created_at,
            expires_at=row.expires_at,
            used_at=row.used_at,
            used_by=row.used_by,
        )
        for row in tx.execute(query)
    ]


def _state(row: Row[tuple[object, ...]], now: float) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.used_at is not None:
        return "used"
    return "expired" if row.expires_at <= now else "open"


def revoke(tx: Transaction, token_id: str) -> None:
    """Let a token no longer be used. Safe to repeat.

    :raises NotFound: there is no such token.
    :raises Conflict: a node has used it; it is to be removed instead.
    """
    table = join_tokens
    row = tx.execute(select(table).where(table.c.id == token_id)).first()
    if row is None:
        raise NotFound(f"There is no token {token_id}.", hint="`anynode token list` lists them.")
    statement = update(table).where(table.c.id == token_id, table.c.used_at.is_(None))
    if not tx.execute(statement.values(revoked_at=row.revoked_at or tx.now)).rowcount:
        raise Conflict(
            f"Token {token_id} was used: its node is a member.",
            hint="`anynode node remove` takes it out again.",
        )


def use(tx: Transaction, token_id: str, secret: str, *, node_id: str, node_name: str) -> bool:
    """Use a token up for a node; ``False`` when that very node has used it before.

    That what asks is the same node is for the caller to see.

    :raises Denied: there is no such token, or it was used by another, has expired, was revoked, or
        is for another node. Whoever does not know the secret learns nothing of that.
    """
    table = join_tokens
    row = tx.execute(select(table).where(table.c.id == token_id)).first()
    stored = row.secret_sha256 if row else ""
    if not hmac.compare_digest(stored, tokens.hash_of(secret)) or row is None:
        raise Denied(
            "The cluster does not know this token.",
            hint="`anynode token create` on a control node makes another.",
            code="Token.Unknown",
        )
    _check(row, tx.now, node_id, node_name)
    if row.used_by == node_id:
        return False
    statement = update(table).where(
        table.c.id == token_id,
        table.c.used_at.is_(None),
        table.c.revoked_at.is_(None),
        table.c.expires_at > tx.now,
    )
    if not tx.execute(statement.values(used_at=tx.now, used_by=node_id)).rowcount:
        raise _used()
    return True


def _check(row: Row[tuple[object, ...]], now: float, node_id: str, node_name: str) -> None:
    again = "`anynode token create` on a control node makes another."
    if row.revoked_at is not None:
        raise Denied("This token was revoked.", hint=again, code="Token.Revoked")
    if row.used_at is not None and row.used_by != node_id:
        raise _used()
    if row.expires_at <= now:
        raise Denied("This token has expired.", hint=again, code="Token.Expired")
    if row.node_name and row.node_name != node_name:
        raise Denied(
            f"This token is for a node called {row.node_name}, not {node_name}.",
            hint=f"Join with --name {row.node_name}, or make a token for any node.",
            code="Token.OtherNode",
        )


def _used() -> Denied:
    return Denied(
        "This token was used before; each lets one machine join.",
        hint="`anynode token create` on a control node makes another.",
        code="Token.Used",
    )


def give_back(tx: Transaction, token_id: str, node_id: str) -> None:
    """Let a token be used again: the node that used it was not admitted after all."""
    table = join_tokens
    tx.execute(
        update(table)
        .where(table.c.id == token_id, table.c.used_by == node_id)
        .values(used_at=None, used_by=None)
    )
