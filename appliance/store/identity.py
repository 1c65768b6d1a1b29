"""Projects, users, their memberships, and access keys.

A project's id is what EC2 calls an account: twelve digits, shown as the owner of all it owns.
"""

from __future__ import annotations

import base64
import re
import secrets
import string
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, delete, insert, select, update

from appliance.access_levels import ACCESS_LEVELS
from appliance.errors import Conflict, InputError, NotFound
from appliance.hookspecs import Credential
from appliance.model import Identity
from appliance.seal import Seal
from appliance.store import Store, Transaction, belongings, quotas
from appliance.store.schema import access_keys, memberships, projects, users
from appliance.store.schema import quotas as quota_table

_LOOKS_LIKE_ID = re.compile(r"\d{12}|AIDA[A-Z2-7]{16}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
_KEY_ID = re.compile(r"[!-+\--.0-~]{1,64}", re.ASCII)
_LONGEST_SECRET = 256
_SECRET_CHARACTERS = string.ascii_letters + string.digits + "+/"
_SECRET_LENGTH = 40
_PURPOSE = "secret access key"
_DECOY = "nobody"


@dataclass(frozen=True, kw_only=True)
class Project:
    """A tenant."""

    project_id: str
    name: str
    is_enabled: bool
    created_at: float


@dataclass(frozen=True, kw_only=True)
class User:
    """A person or a program. ``memberships`` maps the names of projects to access levels."""

    user_id: str
    name: str
    is_enabled: bool
    created_at: float
    memberships: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """An access key without its secret; it works until ``expires_at``, if it has one."""

    access_key_id: str
    user_name: str
    project_name: str
    is_enabled: bool
    created_at: float
    expires_at: float | None


def create_project(
    tx: Transaction, name: str, ceilings: Mapping[str, int], project_id: str = ""
) -> Project:
    """Make a project with its quotas.

    :param ceilings: quota by resource, see ``QuotaSettings``.
    :param project_id: twelve digits, to keep the id of another cloud; drawn when empty.
    :raises Conflict: the name or the id is taken, or a deleted project of that id left something.
    """
    _check_name("project", name)
    if project_id and not re.fullmatch(r"\d{12}", project_id, re.ASCII):
        raise InputError(f"Could not make project {name!r}: its id must be twelve digits.")
    wanted = project_id or _account_number(tx)
    taken = select(projects.c.id).where((projects.c.name == name) | (projects.c.id == wanted))
    if tx.execute(taken).first():
        raise Conflict(f"There is a project {name!r}, or one with the id {wanted}.")
    belongings.check_is_free(tx, wanted)
    tx.execute(insert(projects).values(id=wanted, name=name, created_at=tx.now))
    quotas.create(tx, wanted, ceilings)
    return Project(project_id=wanted, name=name, is_enabled=True, created_at=tx.now)


def _account_number(tx: Transaction) -> str:
    return str(100_000_000_000 + uuid.UUID(tx.world.ids.uuid()).int % 900_000_000_000)


def list_projects(tx: Transaction) -> list[Project]:
    """Return all projects by name."""
    return [
        Project(
            project_id=row.id, name=row.name, is_enabled=row.is_enabled, created_at=row.created_at
        )
        for row in tx.execute(select(projects).order_by(projects.c.name))
    ]


def find_project(tx: Transaction, name_or_id: str) -> Project:
    """Return a project.

    :raises NotFound: there is none of that name or id.
    """
    for project in list_projects(tx):
        if name_or_id in (project.name, project.project_id):
            return project
    raise NotFound(f"There is no project {name_or_id!r}.")


def enable_project(tx: Transaction, name_or_id: str, *, is_enabled: bool) -> None:
    """Let a project's keys work, or not; its instances go on.

    :raises NotFound: there is no such project.
    """
    project = find_project(tx, name_or_id)
    tx.execute(
        update(projects).where(projects.c.id == project.project_id).values(is_enabled=is_enabled)
    )


def delete_project(tx: Transaction, name_or_id: str) -> None:
    """Delete a project with its access keys, memberships, key pairs and security groups.

    :raises NotFound: there is no such project.
    :raises Conflict: it has instances that are not terminated, or images.
    """
    project = find_project(tx, name_or_id)
    belongings.delete_all(tx, project.project_id, project.name)
    for table in (access_keys, memberships, quota_table):
        tx.execute(delete(table).where(table.c.project_id == project.project_id))
    tx.execute(delete(projects).where(projects.c.id == project.project_id))


def create_user(tx: Transaction, name: str) -> User:
    """Make a user that belongs to no project yet.

    :raises Conflict: the name is taken.
    """
    _check_name("user", name)
    if tx.execute(select(users.c.id).where(users.c.name == name)).first():
        raise Conflict(f"There is a user {name!r} already.")
    user_id = "AIDA" + _token(tx)
    tx.execute(insert(users).values(id=user_id, name=name, created_at=tx.now))
    return User(user_id=user_id, name=name, is_enabled=True, created_at=tx.now, memberships={})


def list_users(tx: Transaction) -> list[User]:
    """Return all users by name."""
    levels: dict[str, dict[str, str]] = {}
    query = select(memberships.c.user_id, projects.c.name, memberships.c.access_level).join(
        projects, projects.c.id == memberships.c.project_id
    )
    for row in tx.execute(query.order_by(projects.c.name)):
        levels.setdefault(row.user_id, {})[row.name] = row.access_level
    return [
        User(
            user_id=row.id,
            name=row.name,
            is_enabled=row.is_enabled,
            created_at=row.created_at,
            memberships=levels.get(row.id, {}),
        )
        for row in tx.execute(select(users).order_by(users.c.name))
    ]


def find_user(tx: Transaction, name_or_id: str) -> User:
    """Return a user.

    :raises NotFound: there is none of that name or id.
    """
    for user in list_users(tx):
        if name_or_id in (user.name, user.user_id):
            return user
    raise NotFound(f"There is no user {name_or_id!r}.")


def enable_user(tx: Transaction, name_or_id: str, *, is_enabled: bool) -> None:
    """Let a user's keys work, or not.

    :raises NotFound: there is no such user.
    """
    user = find_user(tx, name_or_id)
    tx.execute(update(users).where(users.c.id == user.user_id).values(is_enabled=is_enabled))


def delete_user(tx: Transaction, name_or_id: str) -> None:
    """Delete a user with keys and memberships.

    :raises NotFound: there is no such user.
    """
    user = find_user(tx, name_or_id)
    for table in (access_keys, memberships):
        tx.execute(delete(table).where(table.c.user_id == user.user_id))
    tx.execute(delete(users).where(users.c.id == user.user_id))


def join_project(tx: Transaction, user: str, project: str, access_level: str) -> None:
    """Make a user a member of a project, or change the access level there.

    :raises InputError: there is no such access level.
    :raises NotFound: there is no such user or project.
    """
    if access_level not in ACCESS_LEVELS:
        raise InputError(
            f"There is no access level {access_level!r}.", hint=f"Use {', '.join(ACCESS_LEVELS)}."
        )
    member = {
        "user_id": find_user(tx, user).user_id,
        "project_id": find_project(tx, project).project_id,
    }
    tx.execute(delete(memberships).where(*_is_member(**member)))
    tx.execute(insert(memberships).values(access_level=access_level, **member))


def leave_project(tx: Transaction, user: str, project: str) -> None:
    """Take a user out of a project; its keys for the project are deleted.

    :raises NotFound: there is no such user or project.
    """
    user_id = find_user(tx, user).user_id
    project_id = find_project(tx, project).project_id
    tx.execute(
        delete(access_keys).where(
            access_keys.c.user_id == user_id, access_keys.c.project_id == project_id
        )
    )
    tx.execute(delete(memberships).where(*_is_member(user_id, project_id)))


def _is_member(user_id: str, project_id: str) -> tuple[ColumnElement[bool], ...]:
    return (memberships.c.user_id == user_id, memberships.c.project_id == project_id)


def create_access_key(tx: Transaction, seal: Seal, user: str, project: str) -> tuple[str, str]:
    """Make an access key; return its id and its secret, which is never shown again.

    :raises NotFound: there is no such user or project.
    :raises Conflict: the user does not belong to the project.
    """
    user_id = find_user(tx, user).user_id
    project_id = find_project(tx, project).project_id
    if not tx.execute(select(memberships).where(*_is_member(user_id, project_id))).first():
        raise Conflict(
            f"User {user!r} is no member of project {project!r}.",
            hint=f"`anynode project add-user {project} {user}` makes it one.",
        )
    return _new_key(tx, seal, user_id, project_id)


def _new_key(tx: Transaction, seal: Seal, user_id: str, project_id: str) -> tuple[str, str]:
    access_key_id = "AKIA" + _token(tx)
    secret = "".join(secrets.choice(_SECRET_CHARACTERS) for _ in range(_SECRET_LENGTH))
    tx.execute(
        insert(access_keys).values(
            id=access_key_id,
            user_id=user_id,
            project_id=project_id,
            secret_sealed=seal.close(secret.encode(), f"{_PURPOSE}:{access_key_id}"),
            created_at=tx.now,
        )
    )
    return access_key_id, secret


def adopt_access_key(
    tx: Transaction, seal: Seal, user: str, project: str, access_key_id: str, secret: str
) -> None:
    """Let an access key that was made elsewhere work here. Safe to repeat, with another secret too.

    :raises NotFound: there is no such user or project.
    :raises InputError: no client could sign with it.
    """
    if not _KEY_ID.fullmatch(access_key_id) or not 0 < len(secret) <= _LONGEST_SECRET:
        raise InputError(
            f"{access_key_id[:64]!r} cannot be used as an access key.",
            hint="The id is up to 64 printable characters without a slash or blank, the secret "
            f"up to {_LONGEST_SECRET}.",
        )
    owner = {
        "user_id": find_user(tx, user).user_id,
        "project_id": find_project(tx, project).project_id,
    }
    tx.execute(delete(access_keys).where(access_keys.c.id == access_key_id))
    tx.execute(
        insert(access_keys).values(
            id=access_key_id,
            secret_sealed=seal.close(secret.encode(), f"{_PURPOSE}:{access_key_id}"),
            created_at=tx.now,
            **owner,
        )
    )


def list_access_keys(tx: Transaction) -> list[AccessKey]:
    """Return all access keys, oldest first."""
    query = (
        select(access_keys, users.c.name.label("user_name"), projects.c.name.label("project_name"))
        .join(users, users.c.id == access_keys.c.user_id)
        .join(projects, projects.c.id == access_keys.c.project_id)
        .order_by(access_keys.c.created_at)
    )
    return [
        AccessKey(
            access_key_id=row.id,
            user_name=row.user_name,
            project_name=row.project_name,
            is_enabled=row.is_enabled,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )
        for row in tx.execute(query)
    ]


def rotate_access_key(
    tx: Transaction, seal: Seal, access_key_id: str, *, grace_s: float = 0.0
) -> tuple[str, str]:
    """Make a key that takes another's place; return its id and its secret, as when it is made.

    :param grace_s: seconds for which the old key still works; without, it is disabled at once.
    :raises NotFound: there is no such key.
    :raises Conflict: it does not work, or was rotated before and is on its way out.
    """
    owner = tx.execute(
        select(access_keys.c.user_id, access_keys.c.project_id).where(
            access_keys.c.id == access_key_id
        )
    ).first()
    if owner is None:
        raise NotFound(f"There is no access key {access_key_id!r}.")
    end = {"expires_at": tx.now + grace_s} if grace_s else {"is_enabled": False}
    statement = update(access_keys).where(
        access_keys.c.id == access_key_id,
        access_keys.c.is_enabled.is_(True),
        access_keys.c.expires_at.is_(None),
    )
    if tx.execute(statement.values(**end)).rowcount != 1:
        raise Conflict(
            f"Could not rotate access key {access_key_id}: it is disabled, or was rotated before.",
            hint="`anynode key create USER PROJECT` makes another.",
        )
    return _new_key(tx, seal, owner.user_id, owner.project_id)


def enable_access_key(tx: Transaction, access_key_id: str, *, is_enabled: bool) -> None:
    """Let an access key work, until further notice, or not.

    :raises NotFound: there is no such key.
    """
    statement = update(access_keys).where(access_keys.c.id == access_key_id)
    values = {"is_enabled": True, "expires_at": None} if is_enabled else {"is_enabled": False}
    if tx.execute(statement.values(**values)).rowcount != 1:
        raise NotFound(f"There is no access key {access_key_id!r}.")


def delete_access_key(tx: Transaction, access_key_id: str) -> None:
    """Delete an access key.

    :raises NotFound: there is no such key.
    """
    if tx.execute(delete(access_keys).where(access_keys.c.id == access_key_id)).rowcount != 1:
        raise NotFound(f"There is no access key {access_key_id!r}.")


_USABLE = (
    select(
        access_keys.c.user_id,
        access_keys.c.project_id,
        access_keys.c.secret_sealed,
        users.c.name,
        memberships.c.access_level,
    )
    .join(users, users.c.id == access_keys.c.user_id)
    .join(projects, projects.c.id == access_keys.c.project_id)
    .join(
        memberships,
        (memberships.c.user_id == access_keys.c.user_id)
        & (memberships.c.project_id == access_keys.c.project_id),
    )
    .where(
        access_keys.c.id == bindparam("access_key_id"),
        access_keys.c.is_enabled.is_(True),
        access_keys.c.expires_at.is_(None) | (access_keys.c.expires_at > bindparam("now")),
        users.c.is_enabled.is_(True),
        projects.c.is_enabled.is_(True),
    )
)


class StoreCredentials:
    """Access keys as authentication plugins see them.

    Each look-up asks the store, so that a key is dead in the moment in which it, its user, its
    project or the membership is disabled or deleted. One that finds nothing does the same work.
    """

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal
        self._decoy = seal.close(b"0" * _SECRET_LENGTH, f"{_PURPOSE}:{_DECOY}")

    def find(self, access_key_id: str) -> Credential | None:
        """Return the usable access key of that id; ``None`` when it cannot be used."""

        def read(tx: Transaction) -> Row[Any] | None:
            return tx.execute(_USABLE, {"access_key_id": access_key_id, "now": tx.now}).first()

        row = self._store.read(read)
        if row is None:
            open_secret(self._seal, _DECOY, self._decoy)
            return None
        identity = Identity(
            user_id=row.user_id,
            user_name=row.name,
            project_id=row.project_id,
            access_level=row.access_level,
            access_key_id=access_key_id,
        )
        secret = open_secret(self._seal, access_key_id, row.secret_sealed)
        return Credential(access_key_id=access_key_id, secret=secret, identity=identity)


def open_secret(seal: Seal, access_key_id: str, sealed: bytes) -> str:
    """Return the secret of an access key in clear.

    :raises ConfigError: the key that sealed it is not in the file, or the value was altered.
    """
    return seal.open(sealed, f"{_PURPOSE}:{access_key_id}").decode()


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"Could not make {kind} {name[:64]!r}.",
            hint="Names are up to 64 letters, digits and . _ @ + -, and begin with a letter "
            "or digit.",
        )
    if _LOOKS_LIKE_ID.fullmatch(name):
        raise InputError(
            f"Could not make {kind} {name!r}: a name that looks like an id could be taken for "
            "that of another."
        )


def _token(tx: Transaction) -> str:
    """Return 16 characters as ids of users and keys have them."""
    drawn = uuid.UUID(tx.world.ids.uuid()).bytes + uuid.UUID(tx.world.ids.uuid()).bytes
    return base64.b32encode(drawn[-10:]).decode()
