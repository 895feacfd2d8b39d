"""`/files/file/url/…`: a file of the network that the server fetches into a user's volume.

Theory of operation. Anybody with a key may name an address, so the rules are those of webhooks: a name is looked up once, each
address is checked, and the connection is made to that address. Where the answer leads elsewhere, that address is checked in
the same way. What comes goes to the volume piece by piece, and the file has its path when it is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from urllib.parse import urljoin

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.server.endpoints.exchange import Exchange, Headers
from atoll.server.files.transfers import transfers_of
from atoll.server.files.upload import BATCH_BYTES
from atoll.server.published.answers import Failed
from atoll.server.published.parts import Upload, ask, check_target, uploads_of
from atoll.server.published.volume import asked, lent_for, path_of
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.webhooks.targets import Network, networks, resolve

PART = "fetched addresses"
MOST_BYTES = 64 << 30
SECONDS = 600.0
"""The most that one takes: the clients wait so long."""
SILENT_SECONDS = 60.0
"""The longest wait for a connection, an answer, or more of it."""
MOST_REDIRECTS = 5
AT_A_TIME, OF_USER = 32, 4
"""Addresses that are fetched: all, and of one user."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Address(msgspec.Struct):
    """The body of a request."""

    url: str


class Fetches:
    """Fetches of a server.

    Args:
        allowed: networks that may be asked although they are not public.
    """

    def __init__(self, allowed: list[Network]) -> None:
        self._allowed = allowed
        self._context = ssl.create_default_context()
        self._users: Counter[str] = Counter()

    @contextlib.contextmanager
    def turn(self, user: str) -> Iterator[None]:
        """Count a fetch while the context is open.

        Raises:
            Failed: as many are under way as may be.
        """
        if self._users[user] >= OF_USER or self._users.total() >= AT_A_TIME:
            raise Failed(429, f"{OF_USER} addresses of one user are fetched at a time; wait for the end of some")
        self._users[user] += 1
        try:
            yield
        finally:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    @contextlib.asynccontextmanager
    async def answer(self, user: str, url: str) -> AsyncIterator[tuple[Exchange, Headers]]:
        """Ask for an address, and for those that it leads to; give the connection with the answer, and its headers.

        Raises:
            Failed: one cannot be reached, or answers with an error, or there are too many.
            CallerError: one may not be asked.
            TimeoutError: one does not answer in time.
        """
        for _ in range(MOST_REDIRECTS + 1):
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    exchange, status, headers = await self._ask(user, url)
            except errors.HostUnreachable as error:
                raise Failed(
                    422, "the address ended the connection without an answer; check it, or try again"
                ) from error
            except TimeoutError:
                raise
            except (OSError, UnicodeError) as error:
                raise Failed(422, f"the address cannot be reached: {type(error).__name__}; check it") from error
            try:
                place = next((value for name, value in headers if name == b"location"), None)
                if status not in _REDIRECTS or place is None:
                    if status != 200:
                        raise Failed(422, f"the address answers {status}; name one that gives a file without a key")
                    yield exchange, headers
                    return
            finally:
                exchange.close()
            try:
                url = urljoin(url, place.decode("latin-1"))
            except ValueError:
                raise Failed(422, "the address leads to a text that is no address; name the last one") from None
        raise Failed(422, f"the address leads to more than {MOST_REDIRECTS} others; name the last one")

    async def _ask(self, user: str, url: str) -> tuple[Exchange, int, Headers]:
        target = await resolve(user, url, self._allowed)
        context, name = (self._context, target.host) if target.secure else (None, None)
        _, exchange = await asyncio.get_running_loop().create_connection(
            Exchange, target.address, target.port, ssl=context, server_hostname=name
        )
        lines = [f"GET {target.path} HTTP/1.1", f"host: {target.named}", "accept: */*", "accept-encoding: identity"]
        lines += ["user-agent: atoll-files", "connection: close", "", ""]
        try:
            return (exchange, *await exchange.ask("\r\n".join(lines).encode(), None))
        except BaseException:
            exchange.close()
            raise


def install(state: ServerState) -> None:
    """Add the part."""
    state.parts[PART] = Fetches(networks(state.node.options.webhooks.allowed_networks))


async def fetch(request: Request) -> Any:
    """Fetch an address into a file, whole, or leave the file as it is."""
    url, path = (await asked(request, Address)).url, path_of(request)
    if not path:
        raise Failed(422, "`/data` itself cannot be written")
    user, fetches = await principal_of(request), state_of(request).parts[PART]
    async with transfers_of(request).opened(user):
        with fetches.turn(user.user):
            try:
                async with asyncio.timeout(SECONDS), fetches.answer(user.user, url) as (exchange, headers):
                    await _keep(request, user.user, path, exchange, headers)
            except TimeoutError:
                raise Failed(422, "the address does not answer in time; try again, or upload the file") from None
            except _Ended as error:
                raise Failed(422, "the address ended before the file was whole; try again") from error
    return True


class _Ended(Exception):
    """The connection ended in the middle of an answer."""


async def _keep(request: Request, user: str, path: str, exchange: Exchange, headers: Headers) -> None:
    """Write an answer to a file of the user's."""
    length = next((value for name, value in headers if name == b"content-length"), b"")
    if length.isdigit() and (len(length) > 18 or int(length) > MOST_BYTES):
        raise Failed(413, f"the file has more than {MOST_BYTES:,} bytes; a function can download it")
    upload, size = Upload(secrets.token_urlsafe(24), path), 0
    async with lent_for(request) as lent:
        await check_target(lent, path)
        await ask(lent, "parts_begin", upload)
    try:
        async with contextlib.aclosing(_batches(exchange)) as batches:
            async for batch in batches:
                if await request.is_disconnected():
                    raise Failed(499, "the client has gone")
                if size + len(batch) > MOST_BYTES:
                    raise Failed(413, f"the file has more than {MOST_BYTES:,} bytes; a function can download it")
                async with uploads_of(request).writes(user), lent_for(request) as lent:
                    await ask(lent, "parts_write", upload, batch, offset=size)
                size += len(batch)
        async with lent_for(request) as lent:
            await ask(lent, "parts_end", upload, size=size)
    except BaseException:
        with contextlib.suppress(OSError, errors.AtollError):
            async with lent_for(request) as lent:
                await ask(lent, "parts_drop", upload)
        raise


async def _batches(exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Yield an answer's body in pieces of about `BATCH_BYTES`.

    Raises:
        TimeoutError: nothing comes for too long.
        _Ended: the connection ended before it was whole.
    """
    pieces, batch = exchange.pieces(), bytearray()
    try:
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                piece = await anext(pieces, None)
            if piece is None:
                break
            batch += piece
            if len(batch) >= BATCH_BYTES:
                yield bytes(batch)
                batch.clear()
    except errors.HostUnreachable as error:
        raise _Ended from error
    if batch:
        yield bytes(batch)
