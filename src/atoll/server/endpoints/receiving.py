"""Bodies with functions: a line of JSON that says what they are, and their spools, written to files as they come.

A file is on the disk before the row that names it. One without a row, left by a crash or by a removal, is removed later:
those of uploads under way are known, and an upload is noted before its file is made and until its row is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.database.disk import translated
from atoll.server.endpoints import rows
from atoll.terminal_text import cell

WHAT = "the directory of the server's functions"
MOST_LINE_BYTES = 1 << 20
T = TypeVar("T")


class Received(NamedTuple):
    """A spool in its file.

    Args:
        size_bytes: of it.
    """

    file: Path
    size_bytes: int


class Receiver:
    """Takes the functions of one request; files that are not kept go when the context ends.

    Args:
        directory: has the spools of revisions.
    """

    under_way: ClassVar[set[Path]] = set()
    """Files of uploads of this process whose rows are not there yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[Path] = []
        self._kept = False

    def __enter__(self) -> Self:
        with translated(WHAT):
            self._directory.mkdir(mode=0o700, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in () if self._kept else self._files:
            with contextlib.suppress(OSError):  # a disk that cannot be written: it is removed later
                file.unlink(missing_ok=True)
        self.under_way.difference_update(self._files)

    def keep(self) -> None:
        """Keep the files: rows name them."""
        self._kept = True

    async def receive(
        self,
        request: Request,
        kind: type[T],
        names: Callable[[T], Sequence[str]],
        sizes: Callable[[T], Sequence[int]],
        most_line: int = MOST_LINE_BYTES,
    ) -> tuple[T, list[Received]]:
        """Return the line as a value of a type, and the spools, each on the disk.

        Args:
            names: returns the names of the spools' files, and refuses a line before anything is written.
            sizes: returns how many bytes each has; empty for one that is all of the rest.
            most_line: bytes of the line.

        Raises:
            CallerError: the body is of another shape.
            DiskFull, StateUnusable: it cannot be kept.
        """
        stream = request.stream()
        first = b""
        async for piece in stream:
            first += piece
            if b"\n" in first:
                break
            if len(first) > most_line:
                break
        line, found, rest = first.partition(b"\n")
        if not found:
            raise errors.CallerError("the body begins with no line of JSON", hint="upgrade the client")
        try:
            value = msgspec.json.decode(line, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise errors.CallerError(
                f"the functions are described wrongly: {cell(str(error), 200)}", hint="upgrade the client"
            ) from error
        files = [self._directory / name for name in names(value)]
        left = list(sizes(value))
        if left and (len(left) != len(files) or min(left) < 1):
            raise errors.CallerError("the body describes other functions than it has", hint="upgrade the client")
        received = []
        for number, file in enumerate(files):
            size = left[number] if left else None
            written = 0
            with self._open(file) as opened:
                while size is None or written < size:
                    if not rest:
                        rest = await anext(stream, b"")
                        if not rest:
                            break
                    taken = rest if size is None else rest[: size - written]
                    with translated(WHAT):
                        _write(opened, taken)
                    written += len(taken)
                    rest = rest[len(taken) :]
                with translated(WHAT):
                    await asyncio.to_thread(os.fsync, opened.fileno())
            if written < (size or 1):
                raise errors.CallerError("the body ends before its functions do", hint="try again")
            received.append(Received(file, written))
        if rest:
            raise errors.CallerError("the body has more than its functions", hint="upgrade the client")
        return value, received

    def _open(self, file: Path) -> RawIOBase:
        self._files.append(file)
        self.under_way.add(file)
        with translated(WHAT):
            return open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


async def remove_strays(directory: Path, database: Database, kept: Collection[str] = ()) -> int:
    """Remove files of revisions that no row names, but those with some names; return their number.

    Raises:
        OSError, StateUnusable: see `strays`; or one cannot be removed.
    """
    found = [file for file in await strays(directory, database) if file.name not in kept]
    for file in found:
        await asyncio.to_thread(file.unlink, missing_ok=True)
    return len(found)


async def strays(directory: Path, database: Database) -> list[Path]:
    """Return the files of revisions that no row names.

    Raises:
        OSError, StateUnusable: the directory or the database cannot be read or written.
    """
    found = await asyncio.to_thread(_names, directory)
    coming = {file.name for file in Receiver.under_way if file.parent == directory}  # noted before their files are made
    known = await database.run(
        partial(rows.known, names=found), writes=False
    )  # those of them that were added meanwhile, too
    return [directory / name for name in found if name not in coming | known]


def _write(file: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _names(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
