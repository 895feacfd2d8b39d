"""Packages that users upload for their own environments: `PUT /v1/packages/KEY/NAME`, wheels alone.

A package is kept below the state directory, in a directory of its user, and is read by the node for builds
(`environments.asked.uploaded`). It is no part of `/data`, and no function sees it. Past a bound the oldest go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.environments.asked.uploaded import KEY, WHEEL, of_user
from atoll.server.files.failures import Refused, answering
from atoll.server.files.transfers import transfers_of
from atoll.server.state import ServerState, principal_of, state_of
from atoll.work_threads import WorkThreads

PREFIX = "/v1/packages"
MOST_BYTES = 1 << 30
"""Of one package."""
MOST_OF_USER = 4 << 30
MOST_NAMES = 1000
"""Packages of one directory."""
THREADS = 4
"""Reads and writes of packages at a time, one of each user."""

T = TypeVar("T")
Beside = Callable[[Callable[[], Any]], Awaitable[Any]]


def install(state: ServerState) -> None:
    """Add the routes."""
    state.parts["package_threads"] = WorkThreads("packages", THREADS)
    state.routes.append(Route(PREFIX + "/{key}/{name}", answering(_serve), methods=["GET", "PUT"]))
    state.body_bytes[PREFIX + "/"] = MOST_BYTES


async def _serve(request: Request) -> Response:
    """Take a wheel for the environments of its user, or tell whether it is there."""
    principal = await principal_of(request)
    key, name = request.path_params["key"], request.path_params["name"]
    if not KEY.fullmatch(key) or not WHEEL.fullmatch(name):
        raise Refused(400, "bad_package", "the address names no wheel by its digest", "upgrade the client")
    home = state_of(request).node.options.home
    path = of_user(home, principal.user) / key / name
    threads: WorkThreads = state_of(request).parts["package_threads"]

    def beside(work: Callable[[], T]) -> Awaitable[T]:
        return threads.run(principal.user, work)

    if request.method == "GET":
        return JSONResponse({"present": await beside(partial(_touched, path))})
    async with transfers_of(request).opened(principal):
        await _receive(request, path, of_user(home, principal.user), beside)
    return JSONResponse({"present": True}, 201)


async def _receive(request: Request, path: Path, user: Path, beside: Beside) -> None:
    """Write a body to its path, whole and checked, or nothing.

    Args:
        beside: does work in a thread.
    """
    expected = request.headers.get("atoll-sha256", "")
    if not KEY.fullmatch(expected):
        raise Refused(400, "no_digest", "the package comes without its digest", "send `Atoll-Sha256`")
    await beside(partial(_prepare, path.parent, user))
    temporary = user / f".new-{secrets.token_hex(8)}"
    digest, size = hashlib.sha256(), 0
    try:
        file: BinaryIO = await beside(partial(open, temporary, "xb"))
        with file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MOST_BYTES:
                    raise errors.QuotaExceeded(
                        f"a package may have {MOST_BYTES >> 20} MiB", hint="put large files below `/data`"
                    )
                digest.update(chunk)
                await beside(partial(file.write, chunk))
        if digest.hexdigest() != expected:
            raise Refused(400, "wrong_digest", "the package has another digest than announced", "send it again")
        await beside(partial(_place, temporary, path))
        await beside(partial(_trim, user, path.parent))
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _prepare(directory: Path, user: Path) -> None:
    user.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)  # builds see it, by itself, as another uid
    if len(os.listdir(directory)) >= MOST_NAMES:
        raise errors.QuotaExceeded(f"a directory may have {MOST_NAMES} packages", hint="use an index")


def _place(temporary: Path, path: Path) -> None:
    temporary.chmod(0o644)
    temporary.replace(path)


def _touched(path: Path) -> bool:
    try:
        os.utime(path)
        os.utime(path.parent)
    except FileNotFoundError:
        return False
    return True


def _trim(user: Path, kept: Path) -> None:
    """Remove the directories that were not used for longest, until the user's are within the bound."""
    found: list[tuple[float, int, Path]] = []
    for directory in user.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            size = sum(one.stat().st_size for one in directory.iterdir())
            found.append((directory.stat().st_mtime, size, directory))
    total = sum(size for _, size, _ in found)
    for _, size, directory in sorted(found):
        if total <= MOST_OF_USER:
            return
        if directory != kept:
            shutil.rmtree(directory, ignore_errors=True)
            total -= size
