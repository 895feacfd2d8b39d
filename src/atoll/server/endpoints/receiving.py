"""Bodies with functions: a line of JSON that says what they are, and their spools, written to files as they come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, TypeVar

import msgspec
from starlette.requests import Request

from atoll import errors
from atoll.terminal_text import cell

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

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[Path] = []

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)

    def keep(self) -> None:
        """Keep the files: rows name them."""
        self._files.clear()

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
                    opened.write(taken)
                    written += len(taken)
                    rest = rest[len(taken) :]
                opened.flush()
                await asyncio.to_thread(os.fsync, opened.fileno())
            if written < (size or 1):
                raise errors.CallerError("the body ends before its functions do", hint="try again")
            received.append(Received(file, written))
        if rest:
            raise errors.CallerError("the body has more than its functions", hint="upgrade the client")
        return value, received

    def _open(self, file: Path) -> BinaryIO:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._files.append(file)
        return open(descriptor, "wb")
