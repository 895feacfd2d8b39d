"""Transfers under way, which end when their keys do: holders of keys, like lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import HTTPConnection

from atoll import errors
from atoll.server.principal import Principal
from atoll.server.state import state_of

PART = "transfers"


class Transfers:
    """The requests with long bodies, or long answers, of all users."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Timeout, tuple[str, str]] = {}

    def held(self) -> set[tuple[str, str]]:
        """Return user and key of each transfer."""
        return set(self._open.values())

    def end_of(self, user: str, key: str) -> None:
        """End the transfers of a key."""
        for limit, pair in self._open.items():
            if pair == (user, key):
                limit.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def opened(self, principal: Principal) -> AsyncIterator[None]:
        """Hold the user's key while the context is open.

        Raises:
            NotAuthorized: the key has ended meanwhile.
        """
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._open[limit] = principal.user, principal.key
                try:
                    yield
                finally:
                    del self._open[limit]
        except TimeoutError:
            if not limit.expired():
                raise
            raise errors.NotAuthorized("the key has ended", hint="log in again, or ask for another key") from None


def transfers_of(connection: HTTPConnection) -> Transfers:
    """Return the transfers of the server that answers a request."""
    found: Transfers = state_of(connection).parts[PART]
    return found
