"""Authentication: the user behind a request's headers.

Theory of operation. A key is looked up once and then remembered, digest and user, until a key or user ends anywhere:
the database's mark says so, and is read for each request. So a revoked key is refused at once, also when another
process has revoked it. The digests are compared in constant time; an id that this server has not made, a key that is
gone and a wrong secret get one answer.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, select

from atoll import errors
from atoll.server.accounts.limiter import Limiter
from atoll.server.accounts.rows import KEY_PURPOSE, MARK
from atoll.server.accounts.sessions import COOKIE, PageSessions
from atoll.server.accounts.tokens import Pepper, read_key
from atoll.server.addresses import source
from atoll.server.database.database import Database
from atoll.server.database.tables import keys, users
from atoll.server.principal import Principal

T = TypeVar("T")

MOST_REMEMBERED = 10_000
MOST_LOOKS = 8
"""Times that a key is looked up while others end one after the other."""


@dataclass(frozen=True)
class Known:
    """A key as it was looked up.

    Args:
        digest: of its secret.
        principal: its user.
        expires: seconds since the epoch; None for never.
    """

    digest: bytes
    principal: Principal
    expires: float | None

    def accepts(self, digest: bytes, now: float) -> bool:
        """Return whether a secret's digest is the key's, and the key has not expired."""
        return hmac.compare_digest(self.digest, digest) and (self.expires is None or now < self.expires)


def look_up(connection: Connection, key_id: str) -> Known | None:
    """Return a key with its user; None where there is none."""
    row = connection.execute(
        select(keys.c.digest, keys.c.scope, keys.c.expires, users.c.id, users.c.name, users.c.operator, users.c.workers)
        .join(users, users.c.id == keys.c.user)
        .where(keys.c.id == key_id)
    ).first()
    if row is None:
        return None
    principal = Principal(row.id, row.name, key_id, row.scope, operator=row.operator, workers=row.workers)
    return Known(bytes(row.digest), principal, row.expires)


class Authenticator:
    """Finds users by headers; for the event loop's thread.

    Args:
        limiter: counts failed attempts, those of logins as well.
    """

    def __init__(self, database: Database, pepper: Pepper, sessions: PageSessions, limiter: Limiter) -> None:
        self._database = database
        self._pepper = pepper
        self._sessions = sessions
        self.limiter = limiter
        self._mark: object = None
        self._ends = 0
        """How often this process has ended a key or user."""
        self._known: OrderedDict[str, Known] = OrderedDict()
        self.used: dict[str, float] = {}
        """When each key was used last, for those that were since `take_used`."""

    async def authenticate(self, headers: dict[str, str], address: str) -> Principal:
        """Return the user of a request, by `Authorization: Key ID:SECRET`, or by the page's cookie without it.

        Args:
            headers: names in lower case.
            address: of the client.

        Raises:
            NotAuthorized: 401 for no valid key, 403 for a cookie with a request of another site, 429 for too many
                failed attempts.
        """
        authorization = headers.get("authorization", "")
        if not authorization:
            return await self._by_cookie(headers, address)
        pair = read_key(authorization)
        if pair is None or not self._pepper.made(pair[0]):
            raise self._refused(address, "")
        key_id, secret = pair
        found = await self._find(key_id)
        digest = self._pepper.digest(KEY_PURPOSE, secret)
        now = time.time()
        if found is None or not found.accepts(digest, now):
            raise self._refused(address, key_id)
        self.used[key_id] = now
        return found.principal

    async def of_key(self, key_id: str) -> Principal | None:
        """Return the user of a key that is valid now, for who has proof of it of another kind; None for none."""
        found = await self._find(key_id) if self._pepper.made(key_id) else None
        return found.principal if found is not None and found.accepts(found.digest, time.time()) else None

    async def _find(self, key_id: str) -> Known | None:
        mark = self._database.mark(MARK)
        if mark != self._mark:
            self._known.clear()
            self._mark = mark
        found = self._known.get(key_id)
        if found is None:
            found = await self._settled(
                lambda: self._database.run(lambda connection: look_up(connection, key_id), writes=False)
            )
            if found is not None and self._mark == mark:  # what was looked up before a revocation is not remembered
                self._known[key_id] = found
                if len(self._known) > MOST_REMEMBERED:
                    self._known.popitem(last=False)
        return found

    async def _settled(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what a question finds when no key or user has ended meanwhile.

        Who is served from then on is among those that the watch tells of the next end.
        """
        for _ in range(MOST_LOOKS):
            mark, ends = self._database.mark(MARK), self._ends
            found = await ask()
            if (self._database.mark(MARK), self._ends) == (mark, ends):
                break
        return found

    def forget_all(self) -> None:
        """Look every key up again: one has changed."""
        self._known.clear()
        self._mark = None
        self._ends += 1

    async def _by_cookie(self, headers: dict[str, str], address: str) -> Principal:
        cookie = cookie_of(headers.get("cookie", ""))
        if not cookie:
            raise errors.NotAuthorized("the request has no key", hint="run `atoll auth login --host URL`")
        _check_site(headers)
        found = await self._settled(lambda: self._sessions.find(cookie))
        if found is None:
            raise self._refused(address, "")
        return found

    def _refused(self, address: str, key_id: str) -> errors.NotAuthorized:
        try:
            self.limiter.failed(source(address), f"key {key_id}" if key_id else "")
        except errors.NotAuthorized as error:
            return error
        return errors.NotAuthorized(
            "the key is not valid", hint="run `atoll auth login`, or ask the operator of the server for a key"
        )


def cookie_of(header: str, name: str = COOKIE) -> str:
    """Return a cookie's value in the header `Cookie`, the session's if no other is named.

    It is empty for none, for more than one, and for a value that the server has not made. Python's own reader of quoted
    values takes seconds for 60 KB (CVE-2024-7592), so nothing here is unquoted.
    """
    if len(header) > 16_384:
        return ""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    values = [value for key, _, value in pairs if key == name]
    if len(values) != 1 or not values[0].isascii() or len(values[0]) > 200 or '"' in values[0]:
        return ""
    return values[0]


def is_own(origin: str, host: str) -> bool:
    """Return whether the header `Origin` names the server that the header `Host` names."""
    return origin.lower() in (f"https://{host}".lower(), f"http://{host}".lower())


def _check_site(headers: dict[str, str]) -> None:
    """Refuse a request with a cookie that another site's page may have made: browsers say where it comes from."""
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
    own = not origin or is_own(origin, headers.get("host", ""))
    if not own or not (site in ("same-origin", "none") or (not site and origin)):
        raise errors.NotAuthorized(
            "the request comes from another site", hint="open this server's page and do it there", status=403
        )
