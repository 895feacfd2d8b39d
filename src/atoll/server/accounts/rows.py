"""Users and keys as the database keeps them: questions and changes, each in the caller's transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, exc, func, select

from atoll import errors
from atoll.server.accounts import names
from atoll.server.accounts.tokens import Pepper, new_secret
from atoll.server.database.database import Database
from atoll.server.database.tables import identities, keys, users
from atoll.server.principal import ADMIN, API
from atoll.terminal_text import cell

MARK = "keys"
"""Rises whenever a key or a user ends or loses rights."""
MOST_KEYS = 100
"""Keys of one user."""
KEY_PURPOSE = b"atoll key"
LARGEST = 1 << 62


@dataclass(frozen=True)
class User:
    """A user; a quota of 0 is none.

    Args:
        id: opaque, see `names`.
        name: for people.
        operator: whether an ADMIN key of theirs administers the server.
        created: seconds since the epoch.
        volume_bytes, volume_files: the most of the volume.
        workers: the most that run at a time.
    """

    id: str
    name: str
    operator: bool
    created: float
    volume_bytes: int = 0
    volume_files: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Key:
    """A key, without its secret.

    Args:
        id: its first half.
        user: the id of its user.
        scope: `ADMIN` or `API`.
        alias: a note of the user's.
        created, used, expires: seconds since the epoch; None for never.
    """

    id: str
    user: str
    scope: str
    alias: str
    created: float
    used: float | None
    expires: float | None


def _user(row: Row[Any]) -> User:
    return User(**row._mapping)


_KEY_COLUMNS = [column for column in keys.c if column.name != "digest"]


def all_users(connection: Connection) -> list[User]:
    """Return all users by name."""
    return [_user(row) for row in connection.execute(select(users).order_by(users.c.name))]


def find_user(connection: Connection, name: str) -> User:
    """Return a user by name or id.

    Raises:
        CallerError: there is none.
    """
    row = connection.execute(select(users).where((users.c.name == name) | (users.c.id == name))).first()
    if row is None:
        raise errors.CallerError(f"no user is called `{cell(name, 60)}`", hint="see `atoll users list`", status=404)
    return _user(row)


def user_of_identity(connection: Connection, issuer: str, subject: str) -> User | None:
    """Return the user that a subject of an issuer is; None for nobody."""
    row = connection.execute(
        select(users)
        .join(identities, identities.c.user == users.c.id)
        .where(identities.c.issuer == issuer, identities.c.subject == subject)
    ).first()
    return None if row is None else _user(row)


def add_user(connection: Connection, name: str, *, operator: bool = False, **quotas: int) -> User:
    """Add a user and return it.

    Args:
        quotas: see `User`.

    Raises:
        CallerError: the name is none, or is another user's.
    """
    user = User(names.new_id(), names.check_name(name), operator, time.time(), **check_quotas(quotas))
    if connection.execute(select(users.c.id).where(users.c.name == name)).first() is not None:
        raise _taken(name)
    try:
        with connection.begin_nested():
            connection.execute(users.insert().values(**vars(user)))
    except exc.IntegrityError as error:
        raise _taken(name) from error
    return user


def _taken(name: str) -> errors.CallerError:
    return errors.CallerError(f"a user is called `{name}` already", hint="choose another name", status=409)


def check_quotas(quotas: dict[str, int]) -> dict[str, int]:
    """Return quotas that the database can keep.

    Raises:
        CallerError: one is negative or too large.
    """
    for name, value in quotas.items():
        if not 0 <= value < (1 << 31 if name == "workers" else LARGEST):
            raise errors.CallerError(f"the quota `{name}` cannot be {value}", hint="give a number; 0 is for no quota")
    return quotas


def set_quota(connection: Connection, user: User, quotas: dict[str, int]) -> User:
    """Change those of a user's quotas that are given, and return the user."""
    if quotas:
        connection.execute(users.update().where(users.c.id == user.id).values(**check_quotas(quotas)))
    return find_user(connection, user.id)


def remove_user(connection: Connection, user: User) -> None:
    """Remove a user with keys, sessions and identities; the volume is left.

    Raises:
        CallerError: it is the last operator.
    """
    if user.operator and connection.execute(select(func.count()).where(users.c.operator)).scalar() == 1:
        raise errors.CallerError(
            f"`{user.name}` is the only operator", hint="add another one first: `atoll users add NAME --operator`"
        )
    connection.execute(users.delete().where(users.c.id == user.id))
    Database.raise_mark(connection, MARK)


def link(connection: Connection, user: User, issuer: str, subject: str) -> None:
    """Let a subject of an issuer be a user.

    Raises:
        CallerError: it is another user, or this one already.
    """
    if user_of_identity(connection, issuer, subject) is not None:
        raise errors.CallerError("the subject is a user already", hint="see `atoll users list`", status=409)
    connection.execute(identities.insert().values(issuer=issuer, subject=subject, user=user.id))


# --- keys -------------------------------------------------------------------------------------------------------------


def add_key(
    connection: Connection,
    pepper: Pepper,
    user: User,
    *,
    scope: str,
    alias: str = "",
    seconds: float = 0,
    maker: str = "",
) -> tuple[Key, str]:
    """Add a key of a user; return it and its secret, which is kept nowhere.

    Args:
        seconds: until it expires; 0 for never.
        maker: the id of the key that asks, which the new one does not outlive; empty for none.

    Raises:
        CallerError: the scope or the alias is none, or the user has `MOST_KEYS` keys.
        NotAuthorized: the key that asks has ended meanwhile.
    """
    if scope not in (ADMIN, API):
        raise errors.CallerError(f"`{cell(scope, 60)}` is no scope of a key", hint="choose `ADMIN` or `API`")
    if not 0 <= seconds < LARGEST:
        raise errors.CallerError("a key cannot expire then", hint="give the seconds until it does; 0 for never")
    now = time.time()
    connection.execute(keys.delete().where(keys.c.user == user.id, keys.c.expires < now))
    if (connection.execute(select(func.count()).where(keys.c.user == user.id)).scalar() or 0) >= MOST_KEYS:
        raise errors.CallerError(f"a user has at most {MOST_KEYS} keys", hint="revoke one: `atoll key revoke ID`")
    ends = [now + seconds] if seconds else []
    if maker:
        made = connection.execute(select(keys.c.expires).where(keys.c.id == maker)).first()
        if made is None:
            raise errors.NotAuthorized("the key has ended", hint="run `atoll auth login`")
        ends += [made.expires] if made.expires is not None else []
    expires = min(ends, default=None)
    key = Key(pepper.new_key_id(), user.id, scope, names.check_alias(alias), now, None, expires)
    secret = new_secret()
    connection.execute(keys.insert().values(digest=pepper.digest(KEY_PURPOSE, secret), **vars(key)))
    return key, secret


def keys_of(connection: Connection, user: User) -> list[Key]:
    """Return the keys of a user, the oldest first."""
    found = connection.execute(select(*_KEY_COLUMNS).where(keys.c.user == user.id).order_by(keys.c.created, keys.c.id))
    return [Key(**row._mapping) for row in found]


def revoke(connection: Connection, key_id: str, user: str = "") -> Key:
    """Remove a key, with the sessions that began with it, and return it.

    Args:
        user: the id of the user whose it must be; empty for anybody's.

    Raises:
        CallerError: there is none.
    """
    row = connection.execute(select(*_KEY_COLUMNS).where(keys.c.id == key_id)).first()
    if row is None or (user and row.user != user):  # of other users' keys nothing is said
        raise errors.CallerError(f"no key has the id `{cell(key_id, 60)}`", hint="see `atoll key list`", status=404)
    connection.execute(keys.delete().where(keys.c.id == key_id))
    Database.raise_mark(connection, MARK)
    return Key(**row._mapping)
