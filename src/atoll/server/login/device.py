"""Device logins under way: begun by a program, confirmed by a person at the issuer, ended by a key.

Theory of operation. The program gets a token of this server's and never the issuer's device code. It asks as often as
it likes: the issuer is asked at its interval, which grows by 5 s when it says `slow_down` (RFC 8628, 3.5), and one
question at a time, so that two cannot make two keys. The table is bounded, over all, by address and by its
wider networks, so that no owner of many addresses keeps everybody else from logging in. It lives in memory: a server
that restarts forgets logins under way, and people begin again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.limiter import Limiter
from atoll.server.accounts.names import check_alias
from atoll.server.addresses import ranges, source
from atoll.server.login import people
from atoll.server.login.options import is_safe
from atoll.server.principal import ADMIN

if TYPE_CHECKING:
    from atoll.server.login.issuer import Issuer  # 0.5 s to import, for servers that have one

MOST_LOGINS = 1000
MOST_OF_ADDRESS = 20
MOST_OF_RANGES = (80, 250)
"""Logins under way of a site's and of a provider's network; see `addresses.ranges`."""
MOST_SECONDS = 1800.0
SLOWER_SECONDS = 5.0
_PURPOSE = b"atoll device"


@dataclass
class Begun:
    """A login under way.

    Args:
        code: the issuer's device code.
        user_code: shown to the person, who compares it.
        address: of the issuer's page; `complete` has the code in it.
        interval: seconds between two questions to the issuer.
        next_at, ends_at: of the clock: the earliest next question; the end of the login.
        sources: the buckets of the client's address, the narrowest first.
        alias: of the key to make.
        is_asked: a question to the issuer is under way.
    """

    code: str
    user_code: str
    address: str
    complete: str
    interval: float
    next_at: float
    ends_at: float
    sources: tuple[str, ...]
    alias: str
    is_asked: bool = False


class DeviceLogins:
    """The device logins of a server; for the event loop's thread."""

    def __init__(self, accounts: Accounts, issuer: Issuer, clock: Callable[[], float] = time.monotonic) -> None:
        self.issuer = issuer
        self._accounts = accounts
        self._clock = clock
        self._logins: dict[bytes, Begun] = {}
        self._beginning: list[tuple[str, ...]] = []
        self._begins = Limiter(attempts=MOST_OF_ADDRESS, refill_seconds=15.0)

    async def begin(self, address: str, alias: str = "") -> tuple[str, Begun]:
        """Begin a login; return the token to ask with, and the login.

        Args:
            address: of the client.

        Raises:
            NotAuthorized: 429, too many are begun.
            HostUnreachable: the issuer cannot be used.
            CallerError: the alias is none.
        """
        alias = check_alias(alias)
        sources = (source(address), *ranges(address))
        self._begins.failed(sources[0])
        now = self._clock()
        self._logins = {key: login for key, login in self._logins.items() if login.ends_at > now}
        self._check_room(sources)
        self._beginning.append(sources)
        try:
            found = await self.issuer.begin()
        finally:
            self._beginning.remove(sources)
        page = str(found["verification_uri"])
        if not is_safe(page):
            raise errors.HostUnreachable("the issuer's page has no https", hint="tell the operator")
        complete = found.get("verification_uri_complete")
        interval = min(60.0, max(1.0, _number(found.get("interval"), 5.0)))
        begun = Begun(
            code=str(found["device_code"]),
            user_code=str(found["user_code"])[:64],
            address=page[:2000],
            complete=complete[:2000] if isinstance(complete, str) and is_safe(complete) else "",
            interval=interval,
            next_at=now + interval,
            ends_at=now + min(MOST_SECONDS, max(10.0, _number(found.get("expires_in"), 600.0))),
            sources=sources,
            alias=alias or "login",
        )
        token = secrets.token_urlsafe(32)
        self._logins[self._accounts.pepper.digest(_PURPOSE, token)] = begun
        return token, begun

    def _check_room(self, sources: tuple[str, ...]) -> None:
        """Refuse one login too many; those that the issuer is asked to begin count as well."""
        under_way = [*(login.sources for login in self._logins.values()), *self._beginning]
        bounds = zip(sources, (MOST_OF_ADDRESS, *MOST_OF_RANGES), strict=True)
        if len(under_way) >= MOST_LOGINS or any(sum(name in one for one in under_way) >= most for name, most in bounds):
            raise errors.NotAuthorized(
                "too many logins are under way", hint="try again in a minute", status=429, retry_after=60
            )

    def seconds_left(self, begun: Begun) -> float:
        """Return the seconds until a login ends."""
        return begun.ends_at - self._clock()

    async def poll(self, token: str, address: str) -> tuple[rows.Key, str] | float:
        """Return the key and secret of a login that was confirmed; else the seconds to wait before asking again.

        Raises:
            NotAuthorized: nothing is known of the login, it was refused, or it has expired.
            HostUnreachable: the issuer cannot be used; the login goes on.
        """
        name = self._accounts.pepper.digest(_PURPOSE, token)
        login = self._logins.get(name)
        now = self._clock()
        if login is None or login.ends_at <= now:
            self._accounts.limiter.failed(source(address))
            raise _over("the login is not known, or has expired")
        if login.is_asked or now < login.next_at:
            return max(1.0, login.next_at - now)
        login.is_asked = True
        try:
            error, id_token = await self.issuer.poll(login.code)
        finally:
            login.is_asked = False
            login.next_at = self._clock() + login.interval
        if error in ("authorization_pending", "slow_down"):
            if error == "slow_down":
                login.interval = min(60.0, login.interval + SLOWER_SECONDS)
                login.next_at = self._clock() + login.interval
            return login.interval
        self._logins.pop(name, None)
        if error == "expired_token":
            raise _over("the code has expired")
        if error:
            raise _over(f"the issuer says `{error}`")
        claims = await self.issuer.claims(id_token)
        return await self._accounts.database.run(lambda connection: self._key(connection, claims, login.alias))

    def _key(self, connection: Connection, claims: dict[str, Any], alias: str) -> tuple[rows.Key, str]:
        options = self.issuer.options
        people.check_admitted(claims, options)
        user = people.user_of(connection, claims, options)
        seconds = options.key_days * 86400
        return rows.add_key(connection, self._accounts.pepper, user, scope=ADMIN, alias=alias, seconds=seconds)


def _over(reason: str) -> errors.NotAuthorized:
    return errors.NotAuthorized(reason, hint="run `atoll auth login` again")


def _number(value: object, default: float) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1 << 31
    return float(value) if fits and isinstance(value, (int, float)) else default
