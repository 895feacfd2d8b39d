"""Pages that change while they are looked at, as server-sent events: a call's output, and the calls that run.

Each stream asks the node now and then, and sends only what is new. It ends after a while, so that a browser asks again
with its cookie: a session that has ended sees no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from atoll import errors
from atoll.server.pages import guard
from atoll.server.pages.calls import Whose, read_call, running_calls, whose_calls
from atoll.server.pages.rendering import output_text, render
from atoll.server.pages.visit import Visit, route
from atoll.server.principal import Principal
from atoll.server.state import ServerState

LOOK_SECONDS = 0.4
ROWS_LOOK_SECONDS = 1.0
STREAM_SECONDS = 60.0
"""For how long one answer goes on; the browser then asks again."""
QUIET_SECONDS = 15.0
"""A comment after so long a silence keeps proxies from closing the connection."""
RECORD_SECONDS = 5.0
"""The time after its end in which a call's record must be there."""
MOST_STREAMS, MOST_OF_ALL = 12, 400


def routes() -> list[BaseRoute]:
    """Return the routes of these streams."""
    return [route("/live/calls", rows), route("/live/calls/{call}", output)]


async def output(visit: Visit) -> Response:
    """Stream a call's output as it comes, and at last its end."""
    call = visit.request.path_params["call"][:200]
    worker, _, seen = visit.request.headers.get("last-event-id", visit.query("seen")).rpartition("/")
    start = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else 0
    await read_call(visit, call, start)
    return stream(visit, _output(visit, call, worker, start))


async def _output(visit: Visit, call: str, worker: str, seen: int) -> AsyncIterator[str]:
    patience = time.monotonic() + RECORD_SECONDS
    told = ""
    while True:
        try:
            found = await read_call(visit, call, seen)
        except errors.CallerError:  # its record comes a moment after its end
            if time.monotonic() > patience:
                yield _event("end", {})
                return
            await asyncio.sleep(LOOK_SECONDS)
            continue
        for row in found.get("unfinished", ()):
            patience = time.monotonic() + RECORD_SECONDS
            if row["state"] == "running" and worker and row["worker"] != worker:
                worker, seen = row["worker"], 0  # the next attempt, which prints from its beginning
                yield _event("again", {})
                break
            worker = row["worker"]
            facts = render("_facts.html", call=row, running=True, now=time.time())
            if row["output"] or row["state"] != told or row["state"] == "running":
                text = _piece(row["output"])
                seen, told = row["printed_bytes"], row["state"]
                yield _event("output", {"text": text, "facts": facts}, f"{worker}/{seen}")
        if found["calls"]:
            yield _event("end", {})
            return
        await asyncio.sleep(LOOK_SECONDS)


def _piece(text: str) -> str:
    """Return a piece of output for the script, which treats a carriage return as a terminal does."""
    return "\r".join(output_text(part) for part in text.replace("\r\n", "\n").split("\r"))


async def rows(visit: Visit) -> Response:
    """Stream the rows of the calls that run, whenever they change."""
    return stream(visit, _rows(visit, await whose_calls(visit)))


async def _rows(visit: Visit, whose: Whose) -> AsyncIterator[str]:
    known, ended = "", set[str]()
    while True:
        calls = await running_calls(visit, whose)
        shown = render("_running.html", running=calls, names=whose.names, now=time.time())
        present = {one["call"] for one in calls}
        if shown != known:
            known = shown
            yield _event("rows", {"html": shown, "ended": bool(ended - present)})
        ended = present
        await asyncio.sleep(ROWS_LOOK_SECONDS)


async def rendered(make: Callable[[], Awaitable[str]], seconds: float) -> AsyncIterator[str]:
    """Yield the HTML of a part of a page whenever it is another one.

    Args:
        make: returns it.
        seconds: between two looks.
    """
    known = ""
    while True:
        shown = await make()
        if shown != known:
            known = shown
            yield _event("rows", {"html": shown})
        await asyncio.sleep(seconds)


def _event(name: str, data: dict[str, Any], number: str = "") -> str:
    last = f"id: {number}\n" if number else ""
    return f"{last}event: {name}\ndata: {json.dumps(data)}\n\n"


class Streams:
    """The streams that are open: counted, and ended with the key that their session began with."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Event, tuple[str, str]] = {}

    def held(self) -> Iterable[tuple[str, str]]:
        """Return user and key of each stream."""
        return set(self._open.values())

    def end_of(self, user: str, key: str) -> None:
        """End the streams of a key."""
        for ended, holder in self._open.items():
            if holder == (user, key):
                ended.set()

    def begin(self, principal: Principal) -> asyncio.Event:
        """Count a stream, until `over`; return the event that ends it.

        Raises:
            NotAuthorized: this user, or all together, have as many as they may.
        """
        mine = sum(holder[0] == principal.user for holder in self._open.values())
        if mine >= MOST_STREAMS or len(self._open) >= MOST_OF_ALL:
            raise errors.NotAuthorized("too many live views are open", hint="close some of them", status=429)
        ended = asyncio.Event()
        self._open[ended] = principal.user, principal.key
        return ended

    def over(self, ended: asyncio.Event) -> None:
        """Count a stream no longer."""
        self._open.pop(ended, None)


def install(state: ServerState) -> None:
    """Let keys that end also end the streams."""
    streams = state.parts["page_streams"] = Streams()
    state.parts["accounts"].holders.append(streams)


def stream(
    visit: Visit,
    events: AsyncIterator[str],
    *,
    seconds: float = STREAM_SECONDS,
    first: str = "retry: 1000\n\n",
    quiet: str = ": \n\n",
    media_type: str = "text/event-stream",
) -> Response:
    """Return an answer that goes on; a user may have some of them at a time.

    Args:
        seconds: the longest that it goes on.
        first: comes before all events.
        quiet: comes after a silence, and means nothing.

    Raises:
        NotAuthorized: see `Streams.begin`.
    """
    streams: Streams = visit.state.parts["page_streams"]
    ended = streams.begin(visit.user)

    async def pieces() -> AsyncGenerator[str, None]:
        yield first
        async with contextlib.aclosing(_paced(events, ended, seconds, quiet)) as paced:
            async for piece in paced:
                yield piece

    headers = {**guard.HEADERS, "X-Accel-Buffering": "no"}
    return _Counted(pieces(), lambda: streams.over(ended), headers, media_type)


class _Counted(StreamingResponse):
    """A stream that is counted from the moment that it is made, also where its client leaves before the first piece.

    Args:
        over: called once at the end.
    """

    def __init__(
        self, pieces: AsyncGenerator[str, None], over: Callable[[], None], headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(pieces, media_type=media_type, headers=headers)
        self._pieces, self._over = pieces, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()
            await self._pieces.aclose()


async def _paced(
    events: AsyncIterator[str], ended: asyncio.Event, seconds: float, quiet: str
) -> AsyncGenerator[str, None]:
    """Give events until the time is up or the stream is ended, and something quiet where they are silent."""
    until = time.monotonic() + seconds
    ending = asyncio.ensure_future(ended.wait())
    waiting: asyncio.Future[str] | None = None
    try:
        while not ended.is_set() and (left := until - time.monotonic()) > 0:
            waiting = waiting or asyncio.ensure_future(anext(events))
            both: set[asyncio.Future[Any]] = {waiting, ending}
            await asyncio.wait(both, timeout=min(QUIET_SECONDS, left), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                yield quiet
                continue
            try:
                piece = waiting.result()
            except (StopAsyncIteration, errors.AtollError):
                return
            waiting = None
            yield piece
    finally:
        ending.cancel()
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, errors.AtollError):
                await waiting
        if isinstance(events, AsyncGenerator):
            await events.aclose()
