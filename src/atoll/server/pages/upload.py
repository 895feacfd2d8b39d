"""Forms of the page's files: short fields, and files that a browser without scripts sends.

Contents go to the volume as they come: nothing waits in memory or on the server's disk, and a file has its path when it
is whole. The token comes before the files, as in the page's own form.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from atoll import errors
from atoll.server.files.upload import BATCH_BYTES, SILENT_SECONDS
from atoll.server.pages.visit import check_form_token, read_fields

MOST_FILES = 200
MOST_FIELDS = 10
MOST_FIELD_BYTES = 4096
MOST_NAME_BYTES = 255


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form without files, its token checked."""
    return await read_fields(request)


class FormFiles:
    """The files of a form, one after the other.

    Args:
        request: its body is read as far as it is asked for.
        has_token: the form is the page's, and begins with a token of its session.

    Raises:
        CallerError: from every method: it is no such form, or its client is silent for too long.
        ClientDisconnect: from every method: the client has gone.
    """

    def __init__(self, request: Request, *, has_token: bool = True) -> None:
        self._request, self._has_token = request, has_token
        self._chunks = request.stream()
        self._events: deque[tuple[str, bytes]] = deque()
        self._names: list[bytes] = [b"", b""]
        self._disposition = b""
        self._is_file = False
        self._field: tuple[str, bytearray] = "", bytearray()
        self._token = ""
        self._fields = self._files = 0
        self._ended = False
        _, options = parse_options_header(request.headers.get("content-type", ""))
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headers,
        }
        try:
            self._parser = MultipartParser(options.get(b"boundary", b""), callbacks)
        except FormParserError as error:
            raise _bad_form() from error

    async def next(self) -> str | None:
        """Return the name of the next file; None at the end.

        Raises:
            NotAuthorized: the token is wrong, or comes later.
        """
        while True:
            while self._events:
                kind, value = self._events.popleft()
                if kind == "token":
                    self._token = value.decode("utf-8", "replace")
                elif kind == "file":
                    self._check()
                    return _name(value)
            if not await self._pull():
                self._check()
                if not self._files:
                    raise errors.CallerError("the form has no file", hint="choose one first", status=400)
                return None

    def _check(self) -> None:
        if self._has_token:
            check_form_token(self._request, self._token)

    async def batches(self) -> AsyncGenerator[list[bytes], None]:
        """Yield the content of the file that `next` has named, in lists of about `BATCH_BYTES`."""
        batch: list[bytes] = []
        size = 0
        while True:
            while self._events:
                kind, value = self._events.popleft()
                if kind == "end":
                    if batch:
                        yield batch
                    return
                batch.append(value)
                size += len(value)
                if size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if not await self._pull():
                raise _bad_form()

    async def _pull(self) -> bool:
        """Read and parse more of the body; return False at its end."""
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(self._chunks, None)
        except TimeoutError:
            raise errors.CallerError("the upload paused for too long", hint="send the form again", status=408) from None
        try:
            if chunk is not None:
                self._parser.write(chunk)
            elif not self._ended:
                self._ended = True
                self._parser.finalize()
        except FormParserError as error:
            raise _bad_form() from error
        return chunk is not None

    # --- what the parser says ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._names, self._disposition = [b"", b""], b""

    def _grow(self, part: int, data: bytes) -> None:
        self._names[part] += data
        if len(self._names[part]) > MOST_FIELD_BYTES:
            raise _bad_form()

    def _header(self) -> None:
        name, value = self._names
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._names = [b"", b""]

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._is_file = bool(options.get(b"filename"))
        if self._is_file:
            self._files += 1
            self._events.append(("file", options[b"filename"]))
        else:
            self._fields += 1
            self._field = options.get(b"name", b"").decode("utf-8", "replace"), bytearray()
        if self._files > MOST_FILES or self._fields > MOST_FIELDS:
            raise errors.CallerError(f"a form takes at most {MOST_FILES} files", hint="send them in parts", status=413)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._events.append(("data", data[start:end]))
            return
        _, value = self._field
        value += data[start:end]
        if len(value) > MOST_FIELD_BYTES:
            raise _bad_form()

    def _end(self) -> None:
        if self._is_file:
            self._events.append(("end", b""))
        elif self._field[0] == "token":
            self._events.append(("token", bytes(self._field[1])))


def _bad_form() -> errors.CallerError:
    return errors.CallerError("the form cannot be read", hint="load the page again", status=400)


def _name(value: bytes) -> str:
    """Return the last part of a file's name, as some browsers send whole paths.

    Raises:
        CallerError: no file can have it.
    """
    name = value.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or len(name.encode("utf-8", "replace")) > MOST_NAME_BYTES:
        raise errors.CallerError("a file's name cannot be one", hint="rename the file first", status=400)
    return name
