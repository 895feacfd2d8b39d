"""Accounts with the rights of the state directory: for the command line on the server's machine, with no key.

A running server notices changes by the database's marks. Lock-free beside it: each act is one transaction.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from atoll import settings
from atoll.server.accounts import bodies, rows
from atoll.server.accounts.acts import added_user, changed_quota, removed_user
from atoll.server.accounts.audit import MACHINE, audit
from atoll.server.accounts.tokens import Pepper, read_pepper
from atoll.server.database.database import Database

if TYPE_CHECKING:
    from typing import Self


class Direct:
    """The accounts of a state directory; closed at the end of its `with` block.

    Args:
        home: the state directory.
        url: of the database; empty for the state directory's own.
        make: whether accounts are made where there are none.

    Raises:
        StateUnusable, StateUntrusted: as `Database` and `read_pepper`.
    """

    def __init__(self, home: Path, url: str = "", *, make: bool = True) -> None:
        self._home = home
        self._make = make
        self._database = Database(home, url, make=make)

    @functools.cached_property
    def _pepper(self) -> Pepper:
        return read_pepper(self._home, make=self._make)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def list_users(self) -> bodies.Users:
        """Return all users by name."""
        with self._database.reading() as connection:
            return bodies.Users([bodies.user_facts(user) for user in rows.all_users(connection)])

    def add_user(self, asked: bodies.NewUser) -> bodies.AddedUser:
        """Add a user."""
        with self._database.writing() as connection:
            return added_user(connection, self._pepper, MACHINE, asked, settings.load(self._home))

    def remove_user(self, name: str) -> bodies.UserFacts:
        """Remove a user; the volume is left."""
        with self._database.writing() as connection:
            return removed_user(connection, MACHINE, name)

    def set_quota(self, name: str, asked: bodies.Quotas) -> bodies.UserFacts:
        """Change quotas of a user."""
        with self._database.writing() as connection:
            return changed_quota(connection, MACHINE, name, asked)

    def list_keys(self, name: str) -> bodies.Keys:
        """Return a user's keys."""
        with self._database.reading() as connection:
            return bodies.Keys(
                [bodies.key_facts(key) for key in rows.keys_of(connection, rows.find_user(connection, name))]
            )

    def make_key(self, name: str, asked: bodies.NewKey) -> bodies.MadeKey:
        """Make a key of a user."""
        with self._database.writing() as connection:
            user = rows.find_user(connection, name)
            key, secret = rows.add_key(
                connection, self._pepper, user, scope=asked.scope, alias=asked.alias, seconds=asked.expires_seconds
            )
            audit(connection, MACHINE, "key.make", key.id, {"user": user.name, "scope": key.scope})
            return bodies.made_key(key, secret)

    def revoke_key(self, key_id: str) -> bodies.KeyFacts:
        """Revoke a key of anybody's."""
        with self._database.writing() as connection:
            key = rows.revoke(connection, key_id)
            audit(connection, MACHINE, "key.revoke", key.id, {"user": key.user})
            return bodies.key_facts(key)
