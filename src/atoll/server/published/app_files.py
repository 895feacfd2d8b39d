"""`/files/app/…`: contents of files beside functions (`app_files`), kept in the user's volume by their hashes."""

from __future__ import annotations

import contextlib
import re
import stat
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from atoll.server.published import parts
from atoll.server.published.answers import Failed, route
from atoll.server.published.volume import asked, lent_for
from atoll.web.app_files import STORE

MISSING = "/files/missing_hashes"
BASE = "/files/app/multipart/{hash}"
MOST_HASHES = 100_000
MOST_BODY_BYTES = 8 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class Hashes(msgspec.Struct):
    """Hashes of contents."""

    hashes: list[str]


class Metadata(msgspec.Struct):
    """What a client says of a file; numbers are texts."""

    mode: str


def routes() -> list[BaseRoute]:
    """Return the routes."""
    one = BASE + "/{upload}"
    return [
        route(MISSING, "POST", missing),
        route(BASE + "/initiate", "POST", begin, conflict=422),
        route(one + "/complete", "POST", complete, conflict=422),
        route(one + "/cancel", "POST", cancel, conflict=422),
        route(one + "/{number}", "PUT", receive, conflict=422),
    ]


async def missing(request: Request) -> Any:
    """Return those of some hashes whose contents are not there."""
    hashes = (await asked(request, Hashes, MOST_BODY_BYTES)).hashes
    if len(hashes) > MOST_HASHES:
        raise Failed(413, f"an app has at most {MOST_HASHES:,} files; leave some out with `app_files_ignore`")
    for one in hashes:
        _check(one)
    async with lent_for(request) as lent:
        there: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            there = set(await lent.call(lent.volume.listdir, STORE))
    return [one for one in dict.fromkeys(hashes) if one not in there]


async def begin(request: Request) -> Any:
    """Begin an upload; 409 where the content is there."""
    path, text = _stored(request), (await asked(request, Metadata)).mode
    mode = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not stat.S_ISREG(mode) or mode & ~stat.S_IFREG & ~0o777 or not mode & 0o400:
        raise Failed(
            422, f"no file of an app has the mode {text[:20]!r}; give its owner the right to read it, and no more"
        )
    async with lent_for(request) as lent:
        with contextlib.suppress(FileNotFoundError):
            await lent.call(lent.volume.stat, path, follow=False)
            raise Failed(409, "the content is there already")
    return await parts.begin(request, path, mode=mode & 0o777, suffix=text, digest=path.rpartition("/")[2])


async def receive(request: Request) -> Any:
    """Write a part."""
    return await parts.receive(request, _stored(request))


async def complete(request: Request) -> Any:
    """Check the content, and keep it by its hash."""
    return await parts.complete(request, _stored(request))


async def cancel(request: Request) -> Any:
    """Forget an upload."""
    return await parts.cancel(request, _stored(request))


def _check(digest: str) -> str:
    if not _HASH.fullmatch(digest):
        raise Failed(422, "a hash has 64 hexadecimal digits in lower case")
    return digest


def _stored(request: Request) -> str:
    return f"{STORE}/{_check(request.path_params['hash'])}"
