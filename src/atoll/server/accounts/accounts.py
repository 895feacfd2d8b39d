"""The accounts of a server: authentication, and the ends of keys for those who serve them.

Theory of operation. Lines outlive the request that opened them, so who serves them is told when their key ends. A
revocation in this process tells at once; the watch notices those of other processes (the command line on the server's
machine) within `WATCH_SECONDS`, and keys that expire. The watch also writes down when keys were used last, so that no
request waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, func, select

from atoll import errors
from atoll.server.accounts import audit
from atoll.server.accounts.authentication import Authenticator
from atoll.server.accounts.limiter import Limiter
from atoll.server.accounts.rows import MARK
from atoll.server.accounts.sessions import PageSessions
from atoll.server.accounts.tokens import Pepper, read_pepper
from atoll.server.database.database import Database
from atoll.server.database.tables import keys, users
from atoll.server.principal import Principal
from atoll.server.process.background import in_background

T = TypeVar("T")

WATCH_SECONDS = 0.5
USED_SECONDS = 60.0
"""The most that the time of a key's last use is behind."""
_MOST_ASKED = 500  # values of one statement
_log = logging.getLogger("atoll.server")


class Holder(Protocol):
    """Serves users beyond the request that they came with, such as the lines."""

    def held(self) -> Iterable[tuple[str, str]]:
        """Return user and key of each of them; the key is empty for a session of the page without one."""
        ...

    def end_of(self, user: str, key: str) -> None:
        """End what is served to a user by a key; without a key, to the user."""
        ...


class Accounts:
    """Users and keys of a server.

    Args:
        home: the state directory.
        url: of the database; empty for the state directory's own.

    Raises:
        StateUnusable, StateUntrusted: see `Database` and `read_pepper`.
    """

    def __init__(self, home: Path, url: str = "") -> None:
        self.pepper: Pepper = read_pepper(home)
        self.database = Database(home, url)
        self.sessions = PageSessions(self.database, self.pepper)
        self.limiter = Limiter()
        self._authenticator = Authenticator(self.database, self.pepper, self.sessions, self.limiter)
        self.holders: list[Holder] = []
        self._written: dict[str, float] = {}

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def count_users(self) -> int:
        """Return the number of users."""
        with self.database.reading() as connection:
            return connection.execute(select(func.count()).select_from(users)).scalar() or 0

    async def authenticate(self, headers: dict[str, str], address: str) -> Principal:
        """Return the user of a request; see `Authenticator.authenticate`."""
        return await self._authenticator.authenticate(headers, address)

    async def of_key(self, key_id: str) -> Principal | None:
        """Return the user of a key that is valid now; None for none."""
        return await self._authenticator.of_key(key_id)

    async def change(self, function: Callable[[Connection], T]) -> T:
        """Call a function with a transaction that may end keys or users, and tell those who serve them."""
        result = await self.database.run(function)
        self._authenticator.forget_all()
        await self.tell_ended()
        return result

    async def audit(self, actor: Principal, act: str, target: str, details: dict[str, Any]) -> None:
        """Note an administrative act; see `audit.audit`, which notes it in the act's own transaction."""
        await self.database.run(lambda connection: audit.audit(connection, actor, act, target, details))

    # --- ends of keys -----------------------------------------------------------------------------------------------

    async def tell_ended(self) -> None:
        """Tell those who serve users whose keys are no longer valid."""
        held = {pair for holder in self.holders for pair in holder.held()}
        if not held:
            return
        valid = await self.database.run(lambda connection: _valid(connection, list(held)), writes=False)
        for user, key in held - valid:
            for holder in self.holders:
                holder.end_of(user, key)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for ends of keys while the context is open, and write down uses; the database is closed after it."""
        try:
            async with in_background(self._watch):
                yield
        finally:
            with contextlib.suppress(errors.AtollError):
                await self.write_used(at_least=0.0)
            self.close()

    async def _watch(self) -> None:
        mark: object = None
        looked = 0.0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                present, now = self.database.mark(MARK), time.monotonic()
                if present != mark or now - looked >= 10:  # expiry raises no mark
                    await self.tell_ended()
                    mark, looked = present, now
                await self.write_used()
            except errors.AtollError as error:
                _log.warning("accounts.watch_failed", extra={"error": error.message})

    async def write_used(self, at_least: float = USED_SECONDS) -> None:
        """Write down when keys were used last, each at most once in so many seconds."""
        due = {
            key: moment
            for key, moment in self._authenticator.used.items()
            if moment - self._written.get(key, 0.0) >= at_least
        }
        if not due:
            return
        await self.database.run(lambda connection: _write_used(connection, due))
        for key, moment in due.items():
            self._written[key] = moment
            if self._authenticator.used.get(key) == moment:
                del self._authenticator.used[key]
        if len(self._written) > 2 * _MOST_ASKED:
            recent = time.time() - USED_SECONDS
            self._written = {key: moment for key, moment in self._written.items() if moment > recent}


def _valid(connection: Connection, asked: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those pairs of user and key that are valid; without a key, the user is."""
    now, found = time.time(), set[tuple[str, str]]()
    for part in _parts([key for _, key in asked if key]):
        rows = connection.execute(select(keys.c.user, keys.c.id, keys.c.expires).where(keys.c.id.in_(part)))
        found.update((row.user, row.id) for row in rows if row.expires is None or row.expires > now)
    for part in _parts([user for user, key in asked if not key]):
        found.update((row.id, "") for row in connection.execute(select(users.c.id).where(users.c.id.in_(part))))
    return found


def _write_used(connection: Connection, moments: dict[str, float]) -> None:
    for key, moment in moments.items():
        connection.execute(keys.update().where(keys.c.id == key).values(used=moment))


def _parts(values: list[str]) -> Iterable[list[str]]:
    return (values[start : start + _MOST_ASKED] for start in range(0, len(values), _MOST_ASKED))
