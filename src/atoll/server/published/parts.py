"""Uploads in parts: the published clients send large files as parts of 10 MiB, ten at a time and in any order.

Theory of operation. The parts go to one file in the volume's staging as they come, each to its place; a peer is lent for a
piece of a part at a time, so that slow clients keep none. Which parts have come is known here alone, in memory: an upload
ends with the server, and its client begins anew. The file of one that nobody completes is removed by the node a day later.
Completed in one step, the file gets its path whole or not at all.

No answer here has the status 409: for the clients it means that the server has the file already.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import stat
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request

from atoll.server.files.peers import Lent
from atoll.server.files.transfers import transfers_of
from atoll.server.pages.upload import FormFiles
from atoll.server.published.answers import Failed
from atoll.server.published.volume import asked, lent_for
from atoll.server.state import principal_of, state_of
from atoll.storage.protocol.connection import absolute

PART = "uploads in parts"
PART_BYTES = 10 << 20
"""Each part but the last has as many."""
MOST_PARTS = 10_000
MOST_OPEN = 64
"""Open uploads of one user."""
MOST_ANSWERS = 256
"""Completed uploads of one user whose answer is kept for a client that asks again."""
IDLE_SECONDS = 24 * 3600.0
"""An upload to which nobody has sent for so long is forgotten."""
MOST_SUMMED_BYTES = 4 << 30
"""Larger files have no sum in the answer, which the clients then do not check: the sum would keep them waiting."""
WRITES = 2
"""Pieces of one user that are written at a time: as many idle peers are kept."""
MOST_LIST_BYTES = 4 << 20
"""Of a list of parts."""
_SUM_BYTES = 16


class Listed(msgspec.Struct):
    """A part as the client lists it."""

    part_number: int
    etag: str


class Completed(msgspec.Struct):
    """The parts of which a file is made."""

    parts: list[Listed]


class Received:
    """The parts that have come: sizes and sums by number, few bytes for each."""

    def __init__(self) -> None:
        self._sizes = array("i")
        self._sums = bytearray()

    def set(self, number: int, size: int, digest: bytes) -> None:
        """Note a part; a size of -1 for one that has not come."""
        missing = number - len(self._sizes)
        self._sizes.extend([-1] * missing)
        self._sums += bytes(_SUM_BYTES * max(missing, 0))
        self._sizes[number - 1] = size
        self._sums[(number - 1) * _SUM_BYTES : number * _SUM_BYTES] = digest

    def checked(self, listed: list[Listed]) -> int:
        """Return the size of the file that the listed parts make.

        Raises:
            Failed: they make none.
        """
        if not listed:
            raise Failed(422, "the list has no part; send the file's parts first")
        for number, one in enumerate(sorted(listed, key=lambda one: one.part_number), 1):
            size = self._size(number)
            if one.part_number != number:
                raise Failed(
                    422, f"the list has part {one.part_number} and not {number}; list each part once, from 1 on"
                )
            if size < 0:
                raise Failed(422, f"part {number} has not come; send it, and complete the upload again")
            if one.etag.strip('"') != self._sum(number):
                raise Failed(422, f"part {number} has another etag; send it again, and list the etag of the answer")
            if size != PART_BYTES and number < len(listed):
                raise Failed(422, f"part {number} has {size:,} bytes, and all but the last have {PART_BYTES:,}")
        for number in range(len(listed) + 1, len(self._sizes) + 1):
            if self._size(number) >= 0:
                raise Failed(422, f"part {number} has come and is not in the list; list it, or cancel the upload")
        return (len(listed) - 1) * PART_BYTES + self._size(len(listed))

    def _size(self, number: int) -> int:
        return self._sizes[number - 1] if number <= len(self._sizes) else -1

    def _sum(self, number: int) -> str:
        return self._sums[(number - 1) * _SUM_BYTES : number * _SUM_BYTES].hex()


@dataclass
class Turn:
    """A part that requests send: one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass
class Upload:
    """An upload under way, or one that is complete.

    Args:
        id: unguessable.
        path: of the file, relative to `/data`.
        mode: permissions of the file; None for those of the one that it replaces.
        suffix: the text that its digest covers besides its content.
        digest: of content and suffix, by SHA-256; empty for any.
    """

    id: str
    path: str
    mode: int | None = None
    suffix: str = ""
    digest: str = ""
    received: Received = field(default_factory=Received)
    turns: dict[int, Turn] = field(default_factory=dict)
    completing: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: bool = False
    answer: dict[str, str] | None = None
    touched: float = field(default_factory=time.monotonic)

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        """Have a part alone: a client that has lost its connection sends it again."""
        turn = self.turns.setdefault(number, Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self.turns[number]

    def check(self) -> None:
        """Check that parts may come.

        Raises:
            Failed: it is complete, or cancelled.
        """
        self.touched = time.monotonic()
        if self.ended:
            raise unknown()


def unknown() -> Failed:
    """Return the error for an upload that is not known."""
    return Failed(404, "there is no such upload: it is complete, cancelled, or older than the server; begin it anew")


class Uploads:
    """The uploads of a server's users."""

    def __init__(self) -> None:
        self._of: defaultdict[str, dict[str, Upload]] = defaultdict(dict)
        self._writes: dict[str, asyncio.Semaphore] = {}

    def add(self, user: str, upload: Upload) -> None:
        """Add an upload.

        Raises:
            Failed: the user has as many open ones as one may.
        """
        self._forget()
        own = self._of[user]
        if sum(1 for one in own.values() if one.answer is None) >= MOST_OPEN:
            raise Failed(
                422,
                f"{MOST_OPEN} uploads are open; complete or cancel some: those without parts are removed after a day",
            )
        own[upload.id] = upload

    def find(self, user: str, name: str, path: str) -> Upload:
        """Return an upload of a user's.

        Raises:
            Failed: there is none, or it is another user's or for another path.
        """
        found = self._of[user].get(name) if user in self._of else None
        if found is None or found.path != path:
            raise unknown()
        return found

    def remove(self, user: str, upload: Upload) -> None:
        """Forget an upload."""
        upload.ended = True
        self._of[user].pop(upload.id, None)

    def complete(self, user: str, upload: Upload, answer: dict[str, str]) -> None:
        """Keep nothing of an upload but its answer."""
        upload.answer, upload.received = answer, Received()
        own = self._of[user]
        answered = [one.id for one in own.values() if one.answer is not None]
        for name in answered[:-MOST_ANSWERS]:
            del own[name]

    def _forget(self) -> None:
        last = time.monotonic() - IDLE_SECONDS
        for user, own in list(self._of.items()):
            for upload in [one for one in own.values() if one.touched < last]:
                self.remove(user, upload)
            if not own:
                del self._of[user]
                self._writes.pop(user, None)

    def writes(self, user: str) -> asyncio.Semaphore:
        """Return the places for pieces of a user's that are written."""
        return self._writes.setdefault(user, asyncio.Semaphore(WRITES))


def uploads_of(request: Request) -> Uploads:
    """Return the uploads of the server that answers a request."""
    found: Uploads = state_of(request).parts[PART]
    return found


async def begin(
    request: Request, path: str, *, mode: int | None = None, suffix: str = "", digest: str = ""
) -> dict[str, str]:
    """Begin an upload to a path; return what its client is told. The last arguments are those of `Upload`.

    Raises:
        Failed: the path is a directory, or too many uploads are open.
        AtollError, OSError: there is no room.
    """
    user = await principal_of(request)
    upload = Upload(secrets.token_urlsafe(24), path, mode, suffix, digest)
    async with lent_for(request) as lent:
        await check_target(lent, path)
        uploads = uploads_of(request)
        uploads.add(user.user, upload)
        try:
            await ask(lent, "parts_begin", upload)
        except BaseException:
            uploads.remove(user.user, upload)
            raise
    return {"upload_id": upload.id}


async def receive(request: Request, path: str) -> dict[str, Any]:
    """Write a part; return its number and its etag.

    Raises:
        Failed: there is no such upload, or it has no such part.
        AtollError, OSError: it cannot be written; parts that came before stay.
    """
    user = await principal_of(request)  # before the body, which goes to the volume as it comes
    uploads = uploads_of(request)
    upload = uploads.find(user.user, request.path_params["upload"], path)
    number = _number(request.path_params["number"])
    form = FormFiles(request, has_token=False)
    await form.next()
    sums, size = hashlib.md5(usedforsecurity=False), 0
    async with transfers_of(request).opened(user), upload.turn(number), contextlib.aclosing(form.batches()) as batches:
        upload.check()
        upload.received.set(number, -1, bytes(_SUM_BYTES))
        async for batch in batches:
            offset = (number - 1) * PART_BYTES + size
            size += sum(map(len, batch))
            if size > PART_BYTES:
                raise Failed(413, f"a part has at most {PART_BYTES:,} bytes; send more parts, or smaller ones")

            def write(lent: Lent, content: list[bytes], offset: int) -> None:
                for one in content:
                    sums.update(one)
                asked_of = {"upload": upload.id, "offset": offset}
                lent.connection.ask("parts_write", upload.path, asked_of, content)

            async with uploads.writes(user.user), lent_for(request) as lent:
                upload.check()
                with _known():
                    await lent.call(write, lent, batch, offset)
        if await form.next() is not None:
            raise Failed(422, "the body has more than one file")
        upload.check()
        upload.received.set(number, size, sums.digest())
    return {"part_number": number, "etag": sums.hexdigest()}


async def complete(request: Request, path: str) -> dict[str, str]:
    """Give the file its path; return its etag, the MD5 of its content, or none of a very large one.

    Raises:
        Failed: there is no such upload, a part is missing, or the content is another than was announced.
        AtollError, OSError: it cannot be placed; the upload stays open.
    """
    listed = (await asked(request, Completed, MOST_LIST_BYTES)).parts
    user, uploads = await principal_of(request), uploads_of(request)
    upload = uploads.find(user.user, request.path_params["upload"], path)
    async with upload.completing:  # one that asks again waits for the same answer
        if upload.answer is not None:
            return upload.answer
        upload.check()
        size = upload.received.checked(listed)
        how: dict[str, Any] = {"size": size, "mode": upload.mode}
        if upload.digest:
            how |= {"sum": "sha256", "suffix": upload.suffix, "wanted": upload.digest}
        elif size <= MOST_SUMMED_BYTES:
            how["sum"] = "md5"
        upload.ended = True
        try:
            async with transfers_of(request).opened(user), lent_for(request) as lent:
                with _known():
                    answer = await ask(lent, "parts_end", upload, **how)
                if "status" not in answer:
                    raise Failed(422, "the content has another hash than was announced; send the parts again")
        except BaseException:
            upload.ended = False
            raise
        uploads.complete(user.user, upload, {"etag": "" if upload.digest else answer["sum"] or ""})
        return upload.answer or {}


async def cancel(request: Request, path: str) -> dict[str, str]:
    """Forget an upload, and remove what has come of it.

    Raises:
        Failed: there is no such upload.
        AtollError, OSError: its file cannot be removed now; it is a day later.
    """
    user, uploads = await principal_of(request), uploads_of(request)
    upload = uploads.find(user.user, request.path_params["upload"], path)
    upload.check()
    uploads.remove(user.user, upload)
    async with lent_for(request) as lent:
        with contextlib.suppress(FileNotFoundError):
            await ask(lent, "parts_drop", upload)
    return {}


async def check_target(lent: Lent, path: str) -> None:
    """Check that a path may become a file.

    Raises:
        Failed: it is a directory.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR((await lent.call(lent.volume.stat, path)).st_mode):
            raise Failed(422, f"`{absolute(path)}` is a directory; name a file in it")


async def ask(lent: Lent, kind: str, upload: Upload, *content: bytes, **arguments: Any) -> dict[str, Any]:
    """Make a request for an upload (`storage.peer.parts`); return what its answer tells.

    Raises:
        AtollError, OSError: those of the request.
    """
    asked_of = {"upload": upload.id, **arguments}
    return (await lent.call(lent.connection.ask, kind, upload.path, asked_of, list(content))).header


@contextlib.contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise unknown() from error


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_PARTS:
        raise Failed(
            422, f"a part's number is one from 1 to {MOST_PARTS:,}; `sync_dir` takes files that need more of them"
        )
    return int(text)
