"""`/files/…`: the user's volume, as `sync_dir`, downloads and the command line of the published clients have it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.files.download import Streamed, download
from atoll.server.files.paths import from_text
from atoll.server.files.peers import Lent
from atoll.server.files.transfers import transfers_of
from atoll.server.files.upload import write
from atoll.server.pages.upload import FormFiles
from atoll.server.published import addresses, parts
from atoll.server.published.answers import Failed, route
from atoll.server.published.volume import asked, lent_for, path_of
from atoll.server.state import principal_of
from atoll.storage.client.volume import VolumeClient
from atoll.storage.protocol.connection import absolute

PREFIX = "/files"
MOST_BODY_BYTES = 1 << 40
HASH_FILE = ".fal_hash"
MOST_HASH_BYTES = 1000
PIECE_BYTES = 1 << 20
MOST_ENTRIES = 200_000
"""Entries of one archive."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        route(PREFIX + "/dir/check_hash/{path:path}", "POST", check_hash),
        route(PREFIX + "/file/local/{path:path}", "POST", upload),
        route(PREFIX + "/file/exists/{path:path}", "POST", exists),
        route(PREFIX + "/list", "GET", list_directory),
        route(PREFIX + "/list/{path:path}", "GET", list_directory),
        route(PREFIX + "/file/{path:path}", "GET", read),
        route(PREFIX + "/file/{path:path}", "DELETE", delete),
        route(PREFIX + "/rename/{path:path}", "POST", rename),
        route(PREFIX + "/file/url/{path:path}", "POST", addresses.fetch),
        *_in_parts(PREFIX + "/file/multipart/{path:path}"),
    ]


def _in_parts(base: str) -> list[BaseRoute]:
    async def begin(request: Request) -> Any:
        if not (path := path_of(request)):
            raise Failed(422, "`/data` itself cannot be written")
        return await parts.begin(request, path)

    async def receive(request: Request) -> Any:
        return await parts.receive(request, path_of(request))

    async def complete(request: Request) -> Any:
        return await parts.complete(request, path_of(request))

    async def cancel(request: Request) -> Any:
        return await parts.cancel(request, path_of(request))

    one = base + "/{upload}"
    return [
        route(base + "/initiate", "POST", begin, conflict=422),
        route(one + "/complete", "POST", complete, conflict=422),
        route(one + "/cancel", "POST", cancel, conflict=422),
        route(one + "/{number}", "PUT", receive, conflict=422),
    ]


class _Hash(msgspec.Struct):
    hash: str | None


class _Destination(msgspec.Struct):
    destination: str


async def check_hash(request: Request) -> Any:
    """Tell whether a directory was uploaded with these contents."""
    path, wanted = path_of(request), (await asked(request, _Hash)).hash
    async with lent_for(request) as lent:
        try:
            found = await lent.call(lent.volume.read_bytes, f"{path}/{HASH_FILE}", 0, MOST_HASH_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return bool(wanted) and found.decode("utf-8", "replace").strip() == wanted


async def upload(request: Request) -> Any:
    """Write a file; with `unzip=true` a directory takes its place, with what the archive has."""
    path, unzip = path_of(request), request.query_params.get("unzip", "false").lower() == "true"
    if not path:
        raise Failed(422, "`/data` itself cannot be written")
    user = await principal_of(request)  # before the body, which goes to the volume as it comes
    form = FormFiles(request, has_token=False)
    await form.next()
    async with transfers_of(request).opened(user), lent_for(request) as lent:
        if not unzip:
            await write(lent, path, form.batches())
        else:
            await _unzipped(lent, path, form)
        if await form.next() is not None:
            raise Failed(422, "the body has more than one file")
    return True


async def _unzipped(lent: Lent, path: str, form: FormFiles) -> None:
    """Unpack the archive of a form at a path; the volume has it meanwhile."""
    file = f"{_beside(path)}.zip"
    await write(lent, file, form.batches())
    try:
        await lent.call(unpack, lent.volume, file, path)
    finally:
        with contextlib.suppress(OSError, errors.AtollError):
            await lent.call(lent.volume.remove, file)


def _beside(path: str) -> str:
    """Return a hidden path that is free, in the directory of another one."""
    above, _, name = path.rpartition("/")
    return f"{above}/.{name[:100]}-{uuid4().hex}".lstrip("/")


class _Stored(io.RawIOBase):
    """A file of a volume, read where it is asked for."""

    def __init__(self, volume: VolumeClient, path: str) -> None:
        self._volume, self._path = volume, path
        self._size, self._at = volume.stat(path).st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._size)[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._volume.read_bytes(self._path, self._at, len(buffer)) if self._at < self._size else b""
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def unpack(volume: VolumeClient, file: str, path: str) -> None:
    """Put the contents of an archive in the volume into a new directory, which then takes the place of what was at its path.

    Raises:
        Failed: it is no archive, or an entry would be elsewhere.
    """
    made = _beside(path)
    try:
        archive = zipfile.ZipFile(io.BufferedReader(_Stored(volume, file), PIECE_BYTES))
    except (zipfile.BadZipFile, OSError) as error:
        raise Failed(422, "the file is no zip archive") from error
    with archive:
        entries = archive.infolist()
        if len(entries) > MOST_ENTRIES:
            raise Failed(422, f"the archive has more than {MOST_ENTRIES:,} entries")
        targets = [from_text(f"/{made}/{one.filename.removesuffix('/')}").path for one in entries]
        volume.makedirs(made, exist_ok=True)
        try:
            for one, target in zip(entries, targets, strict=True):
                mode = one.external_attr >> 16
                if one.is_dir():
                    volume.makedirs(target, exist_ok=True)
                elif stat.S_IFMT(mode) in (0, stat.S_IFREG):  # never a link that the archive names
                    with archive.open(one) as content:
                        volume.write(target, _pieces(content), mode=(mode & 0o777) or None)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            volume.remove(made, recursive=True)
            raise Failed(422, f"the archive cannot be read: {error}") from error
        except BaseException:
            with contextlib.suppress(Exception):
                volume.remove(made, recursive=True)
            raise
    with contextlib.suppress(FileNotFoundError):
        volume.remove(path, recursive=True)
    volume.rename(made, path)


async def exists(request: Request) -> Any:
    """Describe a file or a directory; status 404 where there is none."""
    path, sums = path_of(request), request.query_params.get("calculate_checksum", "").lower() == "true"
    async with lent_for(request) as lent:
        return await lent.call(_described, lent.volume, path, sums)


def _described(volume: VolumeClient, path: str, sums: bool) -> dict[str, Any]:
    try:
        found = volume.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failed(404, f"there is no `{absolute(path)}`") from error
    described = _spec(path, found)
    if sums and described["is_file"]:
        sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for piece in volume.read(path):
            sha.update(piece)
            md5.update(piece)
        described |= {"checksum_sha256": sha.hexdigest(), "checksum_md5": md5.hexdigest()}
    return described


def _spec(path: str, found: os.stat_result) -> dict[str, Any]:
    return {
        "path": absolute(path),
        "name": path.rpartition("/")[2] or "data",
        "created_time": found.st_mtime,
        "updated_time": found.st_mtime,
        "is_file": not stat.S_ISDIR(found.st_mode),
        "size": found.st_size,
        "checksum_sha256": None,
        "checksum_md5": None,
    }


async def list_directory(request: Request) -> Any:
    """List a directory; one that does not exist has nothing."""
    path = path_of(request)

    def listed(volume: VolumeClient) -> list[dict[str, Any]]:
        try:
            names = volume.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        above, found = path + "/" if path else "", []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found.append(_spec(above + name, volume.stat(above + name, follow=False)))
        return found

    async with lent_for(request) as lent:
        return await lent.call(listed, lent.volume)


async def read(request: Request) -> Response:
    """Send a file."""
    path = path_of(request)
    async with contextlib.AsyncExitStack() as stack:
        lent = await stack.enter_async_context(lent_for(request))
        answer = await download(stack, lent, path, dict(request.headers), head=False, inline=False)
        if isinstance(answer, Streamed):
            answer.held_by = transfers_of(request).opened(await principal_of(request))
        return answer


async def delete(request: Request) -> Any:
    """Remove a file, or a directory with all that is in it."""
    path = path_of(request)
    if not path:
        raise Failed(403, "`/data` itself cannot be removed")
    async with lent_for(request) as lent:
        await lent.call(lent.volume.remove, path, recursive=True)
    return True


async def rename(request: Request) -> Any:
    """Move a file or a directory."""
    path = path_of(request)
    target = from_text((await asked(request, _Destination)).destination).path
    if not path or not target:
        raise Failed(403, "`/data` itself cannot be moved")
    async with lent_for(request) as lent:
        await lent.call(lent.volume.rename, path, target, replace=False)
    return JSONResponse(True)
