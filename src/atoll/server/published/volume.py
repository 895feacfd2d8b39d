"""Requests for a user's volume: short bodies, paths, and the storage peer that they are made with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from starlette.requests import Request

from atoll import errors
from atoll.server.files.paths import from_text
from atoll.server.files.peers import Lent, Peers
from atoll.server.published.answers import Failed
from atoll.server.state import principal_of, state_of
from atoll.server.typed import MOST_BODY_BYTES, read_body

T = TypeVar("T")


async def asked(request: Request, kind: type[T], most_bytes: int = MOST_BODY_BYTES) -> T:
    """Return the short body of a request, whose user is known: bodies below this address may be those of files.

    Raises:
        NotAuthorized: its user is not known.
        Failed: it is of another form.
    """
    await principal_of(request)
    try:
        return await read_body(request, kind, most_bytes)
    except errors.CallerError as error:
        raise Failed(413 if error.details.get("status") == 413 else 422, error.message) from error


def path_of(request: Request) -> str:
    """Return the path of a request, relative to `/data`.

    Raises:
        BadPath: it names none.
    """
    text = request.path_params.get("path", "")
    return from_text("" if text.strip("/") == "data" else text).path


@contextlib.asynccontextmanager
async def lent_for(request: Request) -> AsyncIterator[Lent]:
    """Lend a peer of the user's volume while the context is open.

    Raises:
        AtollError: see `Peers.lent`, and `principal_of`.
    """
    peers: Peers = state_of(request).parts["files"]
    async with peers.lent(await principal_of(request)) as lent:
        yield lent
