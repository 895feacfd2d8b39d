"""Bodies and answers that are too large for a row, as files: on the disk before the row that names them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from atoll.server.database.disk import translated

T = TypeVar("T")

WHAT = "the queue's directory"
INLINE_BYTES = 32 << 10
"""The most of a body or an answer that a row has itself."""
PIECE_BYTES = 256 << 10
BODY, ANSWER = "body", "answer"


class Files:
    """The files of a directory; names are ids of requests with a kind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._threads = ThreadPoolExecutor(4, "queue")

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def path(self, request: str, kind: str) -> Path:
        """Return the path of a body or an answer."""
        return self.directory / f"{request}.{kind}"

    @contextlib.asynccontextmanager
    async def writing(self, request: str, kind: str) -> AsyncIterator[Written]:
        """Open a file to write; one that is not `kept` in the context is removed."""
        path = self.path(request, kind)
        file = await self._run(partial(_open, path))
        written = Written(self._run, file, path)
        try:
            yield written
        finally:
            with contextlib.suppress(OSError):  # of bytes that the disk has refused before
                file.close()
            if not written.kept:
                with contextlib.suppress(OSError):  # it is a stray from here on
                    path.unlink(missing_ok=True)

    async def pieces(self, request: str, kind: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a file.

        Raises:
            FileNotFoundError: there is none any more.
        """
        path = self.path(request, kind)
        file = await self._run(lambda: path.open("rb"))
        try:
            while piece := await self._run(partial(file.read, PIECE_BYTES)):
                yield piece
        finally:
            file.close()

    async def read(self, request: str, kind: str) -> bytes:
        """Return the bytes of a file."""
        return await self._run(self.path(request, kind).read_bytes)

    async def remove(self, requests: Iterable[str], *kinds: str) -> None:
        """Remove files, where there are any."""
        paths = [self.path(request, kind) for request in requests for kind in kinds or (BODY, ANSWER)]

        def remove() -> None:
            for path in paths:
                path.unlink(missing_ok=True)

        await self._run(remove)

    async def names(self, seconds: float) -> list[str]:
        """Return the ids of requests with files that have not changed for so long."""

        def look() -> list[str]:
            before = time.time() - seconds
            with os.scandir(self.directory) as found:
                return [one.name.partition(".")[0] for one in found if one.stat().st_mtime < before]

        return await self._run(look)


class Written:
    """A file that is written."""

    def __init__(self, run: Callable[[Callable[[], object]], Awaitable[object]], file: BinaryIO, path: Path) -> None:
        self._run, self._file, self._path = run, file, path
        self.kept = False

    async def write(self, data: bytes) -> None:
        """Add bytes."""
        with translated(WHAT):
            await self._run(partial(self._file.write, data))

    async def keep(self) -> None:
        """Bring the file to the disk."""
        with translated(WHAT):
            await self._run(partial(_keep, self._file, self._path))
        self.kept = True


def _open(path: Path) -> BinaryIO:
    with translated(WHAT):
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _keep(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
