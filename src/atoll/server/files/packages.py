"""Packages that users upload for their own environments: wheels and source distributions, and directories of them.

    GET, PUT /v1/packages/KEY/NAME      a file whose SHA-256 is KEY
    GET, PUT /v1/packages/KEY           a directory: a list of lines `DIGEST NAME` whose SHA-256 is KEY

A file is named by its content, so what is at a name is what the name says. A directory consists of files that have been
sent before; the answer to its list names those that are missing. Packages are kept beside the volumes, in a directory of
their user, and are read by the node for builds (`environments.asked.uploaded`). They are no part of
`/data`, and no function sees them. Past a bound the oldest go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll import errors
from atoll.environments.asked.uploaded import KEY, MOST_BYTES, MOST_NAMES, PACKAGE, all_of, of_user
from atoll.node.shared import marker
from atoll.server.files.description import DIRECTORY_OPERATIONS, PACKAGE_OPERATIONS
from atoll.server.files.failures import Refused, answering
from atoll.server.files.transfers import transfers_of
from atoll.server.files.upload import body_of
from atoll.server.state import ServerState, principal_of
from atoll.settings import Settings
from atoll.work_threads import WorkThreads

PREFIX = "/v1/packages"
MOST_OF_USER = 4 << 30
"""Bytes of a user's packages."""
MOST_PACKAGES = 4000
"""A user's packages; one counts again in each directory that has it."""
MOST_LIST_BYTES = 512 << 10
"""Of the list of a directory."""
THREADS = 4
"""Reads and writes of packages at a time, one of each user."""
MOST_AT_A_TIME = 3
"""Uploads of one user: the bytes of those that are not complete are bounded by it."""
WAIT_SECONDS = 60.0
"""Seconds that an upload waits for its turn."""
_NEW = ".new-"
_LINE = re.compile(rf"({KEY.pattern}) ({PACKAGE.pattern})")

T = TypeVar("T")


def install(state: ServerState) -> None:
    """Add the routes, and remove what a server that was killed has left of uploads."""
    packages = Packages(state.node.options, partial(state.node.ask, None, "capacity", {}))
    packages.sweep()
    for path, serve, described in (
        ("/{key}/{name}", packages.serve, PACKAGE_OPERATIONS),
        ("/{key}", packages.serve_directory, DIRECTORY_OPERATIONS),
    ):
        endpoint = answering(serve)
        endpoint.described = described  # type: ignore[attr-defined]
        state.routes.append(Route(PREFIX + path, endpoint, methods=["GET", "PUT"]))
    state.body_bytes[PREFIX + "/"] = MOST_BYTES


class Packages:
    """The packages of all users of one server.

    Args:
        options: of the server's machine.
        mount: returns once its node runs, which mounts a shared file system.
    """

    def __init__(self, options: Settings, mount: Callable[[], Awaitable[object]]) -> None:
        self._options, self._mount = options, mount
        self._turns = WeakValueDictionary[str, asyncio.Semaphore]()
        self._threads = WorkThreads("packages", THREADS)

    def sweep(self) -> None:
        """Remove files and directories that are not complete; nobody uploads."""
        with contextlib.suppress(FileNotFoundError):
            for left in all_of(self._options).glob(f"*/{_NEW}*"):
                _remove(left)

    async def serve(self, request: Request) -> Response:
        """Take a package for the environments of its user, or tell whether it is there."""
        principal = await principal_of(request)
        key, name = request.path_params["key"], request.path_params["name"]
        if not KEY.fullmatch(key) or not PACKAGE.fullmatch(name):
            raise Refused(400, "bad_package", "the address names no package by its digest", "upgrade the client")
        user = await self._directory(principal.user)
        if request.method == "GET":
            return JSONResponse({"present": await self._on_disk(principal.user, _touched, user / key / name)})
        async with self._place(principal.user), transfers_of(request).opened(principal):
            await self._receive(request, principal.user, user, key, name)
        return JSONResponse({"present": True}, 201)

    async def serve_directory(self, request: Request) -> Response:
        """Take the list of a directory, or tell whether it is there; the answer to a list names the missing packages."""
        principal = await principal_of(request)
        key = request.path_params["key"]
        if not KEY.fullmatch(key):
            raise Refused(400, "bad_package", "the address names no directory by its digest", "upgrade the client")
        user = await self._directory(principal.user)
        if request.method == "GET":
            return JSONResponse({"present": await self._on_disk(principal.user, _touched, user / key)})
        async with self._place(principal.user), transfers_of(request).opened(principal):
            text = b"".join([chunk async for chunk in _chunks(request, MOST_LIST_BYTES)])
            missing = await self._on_disk(principal.user, _link, user, key, _read_list(key, text))
        return JSONResponse({"present": not missing, "missing": missing}, 202 if missing else 201)

    async def _directory(self, user: str) -> Path:
        """Return the directory of a user's packages.

        Raises:
            VolumesUnavailable: its file system is not mounted.
        """
        if self._options.storage.is_shared:
            try:
                await self._on_disk(user, marker.identity, self._options)
            except errors.VolumesUnavailable:
                await self._mount()
                await self._on_disk(user, marker.identity, self._options)
        return of_user(self._options, user)

    @contextlib.asynccontextmanager
    async def _place(self, user: str) -> AsyncIterator[None]:
        turns = self._turns.setdefault(user, asyncio.Semaphore(MOST_AT_A_TIME))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turns.acquire()
        except TimeoutError:
            raise errors.ResourcesUnavailable(
                f"{MOST_AT_A_TIME} uploads of packages of this user are under way, which is the most",
                hint="try again when one has ended",
            ) from None
        try:
            yield
        finally:
            turns.release()

    async def _receive(self, request: Request, user: str, directory: Path, key: str, name: str) -> None:
        """Write a body to its path, whole and checked, or nothing."""
        await self._on_disk(user, _prepare, directory)
        temporary = directory / f"{_NEW}{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            with await self._on_disk(user, open, temporary, "xb") as file:
                async for chunk in _chunks(request, MOST_BYTES):
                    digest.update(chunk)
                    await self._on_disk(user, file.write, chunk)
                if digest.hexdigest() != key:
                    raise Refused(400, "wrong_digest", "the package has another digest than announced", "send it again")
                await self._on_disk(user, _sync, file)
            await self._on_disk(user, _take, directory, temporary, key, name)
        finally:  # in the user's turn: after work that nobody waits for any more
            await asyncio.shield(self._on_disk(user, _remove, temporary))

    async def _on_disk(self, user: str, work: Callable[..., T], *arguments: object) -> T:
        """Run work on the server's disk in a thread.

        Raises:
            DiskFull, StateUnusable: it failed; neither names a path of the server.
        """
        try:
            return await self._threads.run(user, partial(work, *arguments))
        except errors.AtollError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.DiskFull("the server's disk is full", hint="ask its operator for space") from error
            raise errors.StateUnusable(
                f"the server cannot keep the package: {(error.strerror or '').lower()}", hint="ask its operator"
            ) from error


def _read_list(key: str, text: bytes) -> dict[str, str]:
    """Return the digests of a list by the names of their packages.

    Raises:
        Refused, QuotaExceeded: it is no such list, or too long.
    """
    if hashlib.sha256(text).hexdigest() != key:
        raise Refused(400, "wrong_digest", "the list has another digest than announced", "send it again")
    found: dict[str, str] = {}
    lines = text.decode("ascii", "replace").splitlines()
    for line in lines:
        if not (match := _LINE.fullmatch(line)):
            raise Refused(400, "bad_package", "the list has a line that names no package", "upgrade the client")
        found[match[2]] = match[1]
    if not 0 < len(found) == len(lines):
        raise Refused(400, "bad_package", "the list names a package twice, or none", "upgrade the client")
    if len(found) > MOST_NAMES:
        raise errors.QuotaExceeded(f"a directory may have {MOST_NAMES} packages", hint="use an index")
    return found


async def _chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """Give a body as it comes.

    Raises:
        QuotaExceeded: it is larger.
        Refused: the client is silent for too long.
    """
    size = 0
    async for chunk in body_of(request):
        size += len(chunk)
        if size > most:
            raise errors.QuotaExceeded(
                f"a package may have {MOST_BYTES >> 20} MiB", hint="put large files below `/data`"
            )
        yield chunk


def _prepare(user: Path) -> None:
    for directory in (user.parent, user):
        directory.mkdir(mode=0o700, exist_ok=True)


def _sync(file: object) -> None:
    """Have a file's content on the disk: its name says that it is there."""
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def _take(user: Path, temporary: Path, key: str, name: str) -> None:
    """Give a complete file its place, and remove old ones past the bounds."""
    directory = user / key
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)  # builds see it, by itself, as another uid
    others = [one for one in os.listdir(directory) if one != name]
    if len(others) >= MOST_NAMES:
        raise errors.QuotaExceeded("the package has too many names", hint="upload it under one of them")
    temporary.chmod(0o644)
    temporary.replace(directory / name)
    _trim(user, directory)


def _link(user: Path, key: str, listed: dict[str, str]) -> list[str]:
    """Make a directory of packages that are here; return those that are missing, as `DIGEST/NAME`."""
    missing = [f"{digest}/{name}" for name, digest in listed.items() if not _touched(user / digest / name)]
    directory = user / key
    if missing or _touched(directory):
        return missing
    temporary = user / f"{_NEW}{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
        for name, digest in listed.items():
            os.link(user / digest / name, temporary / name)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another request has made it meanwhile
            raise
    finally:
        _remove(temporary)
    _trim(user, directory)
    return []


def _touched(path: Path) -> bool:
    """Return whether a file or directory is there; note its use."""
    try:
        os.utime(path)
        if path.suffix:
            os.utime(path.parent)
    except FileNotFoundError:
        return False
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _trim(user: Path, kept: Path) -> None:
    """Remove the directories that were not used for longest, until the user's are within the bounds."""
    found: list[tuple[float, Path, dict[int, int]]] = []
    for directory in user.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = {status.st_ino: status.st_size for status in (one.stat() for one in directory.iterdir())}
            found.append((directory.stat().st_mtime, directory, files))
    found.sort(key=lambda one: (one[1] == kept, one[0]))
    links = Counter(inode for _, _, files in found for inode in files)
    sizes = {inode: size for _, _, files in found for inode, size in files.items()}
    count, total = links.total(), sum(sizes.values())
    for _, directory, files in found[:-1]:
        if total <= MOST_OF_USER and count <= MOST_PACKAGES:
            return
        shutil.rmtree(directory, ignore_errors=True)
        count -= len(files)
        links.subtract(files.keys())
        total -= sum(size for inode, size in files.items() if not links[inode])
