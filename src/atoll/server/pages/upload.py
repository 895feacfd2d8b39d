"""Forms of the page's files: short fields, and files that a browser without scripts sends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile
from starlette.requests import Request

from atoll import errors
from atoll.server.pages.visit import check_form_token, read_fields

MOST_BYTES = 100 << 20
"""Bytes of one form with files, which wait on the server's disk; the script and the command line have no such bound."""
MOST_FILES = 200
MOST_NAME_BYTES = 255
_PIECE_BYTES = 1 << 20


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form without files, its token checked."""
    return await read_fields(request)


@contextlib.asynccontextmanager
async def received(request: Request) -> AsyncIterator[list[tuple[str, BinaryIO]]]:
    """Receive a form with files; they are gone at the end of the context.

    Raises:
        CallerError: it is too large, or has no file.
        NotAuthorized: its token is wrong.
    """
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MOST_BYTES + (1 << 20):
        raise errors.CallerError(
            f"a form takes at most {MOST_BYTES >> 20} MiB",
            hint="send larger files with JavaScript on, or with `atoll data put`",
            status=413,
        )
    async with request.form(max_files=MOST_FILES, max_fields=10, max_part_size=4096) as form:
        token = form.get("token")
        check_form_token(request, token if isinstance(token, str) else "")
        given = [one for one in form.getlist("file") if isinstance(one, UploadFile) and one.filename]
        if not given:
            raise errors.CallerError("the form has no file", hint="choose one first", status=400)
        yield [(_name(one.filename or ""), one.file) for one in given]


def _name(text: str) -> str:
    """Return the last part of a file's name, as some browsers send whole paths.

    Raises:
        CallerError: no file can have it.
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or len(name.encode("utf-8", "replace")) > MOST_NAME_BYTES:
        raise errors.CallerError("a file's name cannot be one", hint="rename the file first", status=400)
    return name


def pieces(file: Any) -> Iterator[bytes]:
    """Yield a file's content."""
    while piece := file.read(_PIECE_BYTES):
        yield piece
