"""Downloads: a file, or parts of it, in pieces that the storage peer sends while the last one is on its way."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.files.conditions import NotSatisfiable, Piece, etag, http_date, precondition, wanted_pieces
from atoll.server.files.failures import Refused
from atoll.server.files.peers import Lent
from atoll.server.files.presentation import SAFETY, content_type, disposition
from atoll.storage.client.contents import OpenFile
from atoll.storage.files.tree import Status
from atoll.wire.frames import Message

_CLOCK_NS = 20_000_000
"""The longest tick of the clock that stamps files, and some more."""


class Cut(Exception):
    """A file became shorter while it was sent: the connection is cut, since its length was announced."""


async def download(
    stack: contextlib.AsyncExitStack, lent: Lent, path: str, headers: dict[str, str], *, head: bool, inline: bool
) -> Response:
    """Return the answer with a file's content.

    Args:
        stack: what the answer holds until it has been sent: the peer.
        headers: of the request, names in lower case.
        head: leave the content out.
        inline: for a browser to show.

    Raises:
        OSError: there is no such file, or it cannot be read.
        Refused: a condition or range is not met.
    """
    file = await lent.call(OpenFile, lent.connection, path, "read")
    stack.push_async_callback(_close, lent, file)
    status = file.found
    if time.time_ns() - status.ctime_ns < _CLOCK_NS:  # a change in the same tick of the clock would have the same tag
        await asyncio.sleep(_CLOCK_NS / 1e9)
        status = await lent.call(file.status)
    described = {**SAFETY, "etag": etag(status), "last-modified": http_date(status.mtime_ns), "accept-ranges": "bytes"}
    match precondition(headers, status):
        case 412:
            raise Refused(412, "precondition_failed", "the file has another version", "read it again", described)
        case 304:
            return Response(status_code=304, headers=described)
    kind = content_type(path)
    described["content-disposition"] = disposition(path, inline=inline)
    try:
        pieces = None if head else wanted_pieces(headers, status)
    except NotSatisfiable:
        beyond = {"content-range": f"bytes */{status.size}"}
        raise Refused(416, "range_not_satisfiable", "no byte of the file is there", "ask for less", beyond) from None
    if pieces is None:
        described |= {"content-length": str(status.size), "content-type": kind}
        if head:
            answer = Response()
            answer.raw_headers = _raw(described)
            return answer
        return _streamed(200, described, stack, lent, file, [(b"", (0, status.size))], b"")
    if len(pieces) == 1:
        length = pieces[0][1]
        described |= {"content-range": _content_range(pieces[0], status), "content-length": str(length)}
        described["content-type"] = kind
        return _streamed(206, described, stack, lent, file, [(b"", pieces[0])], b"")
    boundary = secrets.token_hex(16)
    parts = [
        (f"\r\n--{boundary}\r\ncontent-type: {kind}\r\ncontent-range: {_content_range(piece, status)}\r\n\r\n", piece)
        for piece in pieces
    ]
    end = f"\r\n--{boundary}--\r\n".encode("ascii")
    size = sum(len(text) + length for text, (_, length) in parts) + len(end)
    described |= {"content-length": str(size), "content-type": f"multipart/byteranges; boundary={boundary}"}
    encoded = [(text.encode("ascii"), piece) for text, piece in parts]
    return _streamed(206, described, stack, lent, file, encoded, end)


def _content_range(piece: Piece, status: Status) -> str:
    offset, length = piece
    return f"bytes {offset}-{offset + length - 1}/{status.size}"


def _streamed(
    status: int,
    headers: dict[str, str],
    stack: contextlib.AsyncExitStack,
    lent: Lent,
    file: OpenFile,
    parts: list[tuple[bytes, Piece]],
    end: bytes,
) -> Response:
    async def content() -> AsyncGenerator[Any, None]:
        for opening, piece in parts:
            if opening:
                yield opening
            async with contextlib.aclosing(_content(lent, file, piece)) as chunks:
                async for chunk in chunks:
                    yield chunk
        if end:
            yield end

    return Streamed(status, headers, stack.pop_all(), content)


class Streamed(Response):
    """An answer that is sent while its content is read, and ends when the client goes."""

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        held: contextlib.AsyncExitStack,
        content: Callable[[], AsyncGenerator[Any, None]],
    ) -> None:
        super().__init__(status_code=status)
        self.raw_headers = _raw(headers)
        self._held = held
        self._content = content
        self.held_by: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
        """What is open while the answer is sent, and may end it."""

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(errors.NotAuthorized):  # the status has been sent: the rest is missing
            await self._serve(receive, send)

    async def _serve(self, receive: Receive, send: Send) -> None:
        async with self._held, self.held_by:
            sending = asyncio.ensure_future(self._send(send))
            gone = asyncio.ensure_future(_gone(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                for task in (sending, gone):
                    task.cancel()
                await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._content()) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


async def _content(lent: Lent, file: OpenFile, piece: Piece) -> AsyncGenerator[Any, None]:
    """Yield a part of a file; the next chunk is fetched while the last one is sent."""
    messages = file.messages([piece])
    left = piece[1]
    fetching = asyncio.ensure_future(lent.call(_next, messages))
    try:
        while (message := await fetching) is not None:
            fetching = asyncio.ensure_future(lent.call(_next, messages))
            for chunk in message.buffers:
                left -= len(chunk)
                yield chunk
        if left:
            raise Cut
    finally:
        if not fetching.done():
            fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await fetching


def _next(messages: Iterator[Message]) -> Message | None:
    return next(messages, None)


async def _close(lent: Lent, file: OpenFile) -> None:
    if lent.connection.usable:
        with contextlib.suppress(OSError):
            await lent.call(file.close, commit=False)
    else:
        lent.abandon()
