"""Sessions of the page in the database: a cookie's digest, and the user who has logged in with it.

A session ends with the key that it began with, also where that expires, with its user, when it is closed, and after
`SESSION_SECONDS`.
"""

from __future__ import annotations

import secrets
import time

from sqlalchemy import Connection, func, or_, select

from atoll.server.accounts.tokens import Pepper
from atoll.server.database.database import Database
from atoll.server.database.tables import keys, page_sessions, users
from atoll.server.principal import Principal

COOKIE = "atoll_session"
SESSION_SECONDS = 7 * 86400
MOST_OF_USER = 50
"""Sessions of one user; a further one ends the oldest."""
_PURPOSE = b"atoll session"


class PageSessions:
    """The sessions of a server's page."""

    def __init__(self, database: Database, pepper: Pepper) -> None:
        self._database = database
        self._pepper = pepper

    async def open(self, principal: Principal) -> str:
        """Begin a session; return the value of its cookie, which is kept nowhere."""
        cookie = secrets.token_urlsafe(32)
        now, table = time.time(), page_sessions

        def insert(connection: Connection) -> None:
            connection.execute(table.delete().where(table.c.expires < now))
            mine = table.c.user == principal.user
            while (connection.execute(select(func.count()).where(mine)).scalar() or 0) >= MOST_OF_USER:
                oldest = select(table.c.digest).where(mine).order_by(table.c.created).limit(1)
                connection.execute(table.delete().where(table.c.digest == oldest.scalar_subquery()))
            ends = connection.execute(select(keys.c.expires).where(keys.c.id == principal.key)).scalar()
            connection.execute(
                table.insert().values(
                    digest=self._pepper.digest(_PURPOSE, cookie),
                    user=principal.user,
                    key=principal.key or None,
                    scope=principal.scope,
                    created=now,
                    expires=min(now + SESSION_SECONDS, now + SESSION_SECONDS if ends is None else ends),
                )
            )

        await self._database.run(insert)
        return cookie

    async def find(self, cookie: str) -> Principal | None:
        """Return the user of a session; None where it has ended."""
        digest, now = self._pepper.digest(_PURPOSE, cookie), time.time()
        question = (
            select(
                page_sessions.c.key, page_sessions.c.scope, users.c.id, users.c.name, users.c.operator, users.c.workers
            )
            .join(users, users.c.id == page_sessions.c.user)
            .outerjoin(keys, keys.c.id == page_sessions.c.key)
            .where(page_sessions.c.digest == digest, page_sessions.c.expires > now)
            .where(or_(keys.c.expires.is_(None), keys.c.expires > now))
        )
        row = await self._database.run(lambda connection: connection.execute(question).first(), writes=False)
        if row is None:
            return None
        return Principal(row.id, row.name, row.key or "", row.scope, operator=row.operator, workers=row.workers)

    async def close(self, cookie: str) -> None:
        """End a session."""
        ended = page_sessions.delete().where(page_sessions.c.digest == self._pepper.digest(_PURPOSE, cookie))
        await self._database.run(lambda connection: connection.execute(ended).rowcount)
