"""Pages that change while they are looked at, as server-sent events: a call's output, and the calls that run.

Each stream asks the node now and then, and sends only what is new. It ends after a while, so that a browser asks again
with its cookie: a session that has ended sees no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.pages import guard
from atoll.server.pages.calls import read_call
from atoll.server.pages.rendering import output_text, render
from atoll.server.pages.visit import Visit, route

LOOK_SECONDS = 0.4
ROWS_LOOK_SECONDS = 1.0
STREAM_SECONDS = 60.0
"""For how long one answer goes on; the browser then asks again."""
QUIET_SECONDS = 15.0
"""A comment after so long a silence keeps proxies from closing the connection."""
RECORD_SECONDS = 5.0
"""The time after its end in which a call's record must be there."""
MOST_STREAMS, MOST_OF_ALL = 12, 400

_open: Counter[str] = Counter()


def routes() -> list[BaseRoute]:
    """Return the routes of these streams."""
    return [route("/live/calls", rows), route("/live/calls/{call}", output)]


async def output(visit: Visit) -> Response:
    """Stream a call's output as it comes, and at last its end."""
    call = visit.request.path_params["call"][:200]
    worker, _, seen = visit.request.headers.get("last-event-id", visit.query("seen")).rpartition("/")
    start = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else 0
    await read_call(visit, call, start)
    return _stream(visit, _output(visit, call, worker, start))


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
    return _stream(visit, _rows(visit))


async def _rows(visit: Visit) -> AsyncIterator[str]:
    known, ended = "", set[str]()
    while True:
        calls = (await visit.ask("calls.running", {}))["calls"]
        shown = render("_running.html", running=calls, now=time.time())
        present = {one["call"] for one in calls}
        if shown != known:
            known = shown
            yield _event("rows", {"html": shown, "ended": bool(ended - present)})
        ended = present
        await asyncio.sleep(ROWS_LOOK_SECONDS)


def _event(name: str, data: dict[str, Any], number: str = "") -> str:
    last = f"id: {number}\n" if number else ""
    return f"{last}event: {name}\ndata: {json.dumps(data)}\n\n"


def _stream(visit: Visit, events: AsyncIterator[str]) -> Response:
    """Return an answer that goes on; a user may have some of them at a time.

    Raises:
        NotAuthorized: this user, or all together, have as many as they may.
    """
    user = visit.user.user
    if _open[user] >= MOST_STREAMS or _open.total() >= MOST_OF_ALL:
        raise errors.NotAuthorized("too many live views are open", hint="close some of them", status=429)

    async def counted() -> AsyncIterator[str]:
        _open[user] += 1
        try:
            yield "retry: 1000\n\n"
            async for piece in _paced(events):
                yield piece
        finally:
            _open[user] -= 1
            if not _open[user]:
                del _open[user]

    headers = {**guard.HEADERS, "X-Accel-Buffering": "no"}
    return StreamingResponse(counted(), media_type="text/event-stream", headers=headers)


async def _paced(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Give events until the time is up, with comments where they are silent."""
    ends = time.monotonic() + STREAM_SECONDS
    waiting: asyncio.Future[str] | None = None
    try:
        while time.monotonic() < ends:
            waiting = waiting or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=min(QUIET_SECONDS, max(ends - time.monotonic(), 0.0)))
            if not done:
                yield ": \n\n"
                continue
            try:
                piece = waiting.result()
            except (StopAsyncIteration, errors.AtollError):
                return
            waiting = None
            yield piece
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, errors.AtollError):
                await waiting
