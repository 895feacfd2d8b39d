"""The bodies and answers of the routes about accounts, as types that the API's description is made from."""

from __future__ import annotations

from typing import Annotated

import msgspec

from atoll import __version__
from atoll.server.accounts.rows import Key, User


class WhoAmI(msgspec.Struct, frozen=True):
    """The user and key of a request."""

    user: str
    name: str
    key: str
    scope: str
    operator: bool
    version: str = __version__


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to make; `expires_seconds` 0 is for a key that does not expire."""

    scope: str = "API"
    alias: Annotated[str, msgspec.Meta(max_length=64)] = ""
    expires_seconds: Annotated[float, msgspec.Meta(ge=0, le=3_200_000_000)] = 0


class KeyFacts(msgspec.Struct, frozen=True):
    """A key without its secret; moments are seconds since the epoch."""

    id: str
    scope: str
    alias: str
    created: float
    used: float | None
    expires: float | None


class MadeKey(msgspec.Struct, frozen=True):
    """A key with its secret, which is shown this once."""

    id: str
    secret: str
    scope: str
    alias: str
    expires: float | None


class Keys(msgspec.Struct, frozen=True):
    """The caller's keys, the oldest first."""

    keys: list[KeyFacts]


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user to add; quotas of 0 are none."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    operator: bool = False
    key: bool = True
    issuer: Annotated[str, msgspec.Meta(max_length=512)] = ""
    subject: Annotated[str, msgspec.Meta(max_length=255)] = ""
    volume_bytes: int = 0
    volume_files: int = 0
    workers: int = 0


class UserFacts(msgspec.Struct, frozen=True):
    """A user; a quota of 0 is none."""

    id: str
    name: str
    operator: bool
    created: float
    volume_bytes: int
    volume_files: int
    workers: int


class RemovedUser(UserFacts, frozen=True):
    """A user who was removed; `volume` is `kept` or `removed`, or empty where there was none or nobody could tell."""

    volume: str = ""


class AddedUser(msgspec.Struct, frozen=True):
    """A user that was added, with a first key where one was asked for.

    Args:
        warnings: lines for the operator: means that the server lacks to serve this user beside the others.
    """

    user: UserFacts
    key: MadeKey | None
    warnings: list[str] = []


class Users(msgspec.Struct, frozen=True):
    """All users by name."""

    users: list[UserFacts]


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quotas to change; those that are absent stay, 0 is for none."""

    volume_bytes: int | None = None
    volume_files: int | None = None
    workers: int | None = None


def key_facts(key: Key) -> KeyFacts:
    """Return a key's facts."""
    return KeyFacts(key.id, key.scope, key.alias, key.created, key.used, key.expires)


def made_key(key: Key, secret: str) -> MadeKey:
    """Return a new key's facts."""
    return MadeKey(key.id, secret, key.scope, key.alias, key.expires)


def user_facts(user: User) -> UserFacts:
    """Return a user's facts."""
    return UserFacts(**vars(user))
