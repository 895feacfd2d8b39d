"""Calls of endpoints from their pages: in the name of who has logged in, and with answers that are shown as text alone.

The browser gets no answer of a function's as it is: the server reads it, and sends its text in lines of JSON, so nothing in it
can act on the page.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response

from atoll import errors
from atoll.model.sizes import size_text
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.passing import Answer, Asked, passed
from atoll.server.endpoints.rows import Revision
from atoll.server.pages import live
from atoll.server.pages.rendering import address
from atoll.server.pages.serving import kept
from atoll.server.pages.serving.forms import Call
from atoll.server.pages.visit import Visit
from atoll.terminal_text import cell, lines
from atoll.work_threads import WorkThreads

MOST_TEXT = 1 << 20
"""Bytes of an answer that are shown."""
TYPE = "application/x-ndjson"
_TEXTS = ("text/", "application/json", "application/x-ndjson", "application/xml", "application/javascript")
_SHORT = 4096
_threads = WorkThreads("answers", 2)
_ACCEPT = b"text/event-stream, application/json;q=0.9, */*;q=0.5"


@dataclass
class Shown:
    """An answer as a page shows it.

    Args:
        status: 0 where there is no answer.
        kind: its `content-type`.
        seconds: to its end.
        problem: why there is none, or not all of it.
        element: that shows an answer which is no text, from the address.
    """

    status: int = 0
    kind: str = ""
    seconds: float = 0.0
    size: int = 0
    text: str = ""
    problem: str = ""
    hint: str = ""
    element: str = ""
    address: str = ""


def asked(visit: Visit, revision: Revision, call: Call) -> Asked:
    """Return the request to a runner."""
    scope = visit.request.scope
    headers = [(b"host", visit.request.headers.get("host", "").encode("latin-1")), (b"accept", _ACCEPT)]
    if call.body:
        headers.append((b"content-type", b"application/json"))
    return Asked(
        call.method,
        call.target.encode("ascii"),
        headers,
        scope.get("atoll.request", ""),
        visit.user.user,
        scope["client"][0] if scope["client"] else "",
        scope["scheme"],
        f"/{revision.owner}/{revision.alias or revision.id}".encode(),
    )


async def events(visit: Visit, revision: Revision, call: Call) -> AsyncIterator[dict[str, Any]]:
    """Call an endpoint, and yield its head, its text as it comes, and its end."""
    gateway: Gateway = visit.state.parts["gateway"]
    began, status, size = time.monotonic(), 0, 0
    known: kept.Answers = visit.state.parts["page_answers"]
    other = kept.Collected(known)
    pool = gateway.runners.pool(revision)
    try:
        runner = await pool.take()
        try:
            async with passed(pool, runner, asked(visit, revision, call), call.body) as answer:
                status = answer.status
                kind = _kind(answer)
                yield {"event": "head", "status": status, "type": kind, "seconds": time.monotonic() - began}
                async for text, content in _pieces(answer, kind, visit.user.user):
                    size += len(content)
                    if text:
                        yield {"event": "text", "text": text}
                    elif not is_text(kind):
                        other.add(content)
                cut = not answer.exchange.is_whole
                answer.exchange.reusable = answer.exchange.reusable and not cut
        finally:
            pool.give_back(runner)
        if size and other.size == size:
            name = known.put(visit.user.user, kind, other)
            where = address("endpoints", revision.alias or revision.id, "answers", name)
            yield {"event": "file", "element": kept.element_of(kind), "address": where}
        note = f"only the first {size_text(MOST_TEXT)} are shown" if cut and is_text(kind) else ""
        yield {"event": "end", "seconds": time.monotonic() - began, "bytes": size, "note": note}
    except errors.AtollError as error:
        yield {"event": "failed", "message": error.message, "hint": error.hint, "seconds": time.monotonic() - began}
    except TimeoutError:
        message = "the function did not answer in time"
        yield {"event": "failed", "message": message, "hint": "see its output", "seconds": time.monotonic() - began}
    finally:
        other.drop()
        pool.figures.note(time.monotonic() - began, status, time.monotonic())


def _kind(answer: Answer) -> str:
    found = next((value for name, value in answer.headers if name == b"content-type"), b"")
    return cell(found.decode("latin-1"), 100)


def is_text(kind: str) -> bool:
    """Return whether answers of a type are shown."""
    plain = kind.partition(";")[0].strip().lower()
    return not plain or plain.startswith(_TEXTS) or plain.endswith(("+json", "+xml"))


async def _pieces(answer: Answer, kind: str, user: str) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the pieces of an answer as they come, each with its text; that is empty where it is none."""
    decoder, size = codecs.getincrementaldecoder("utf-8")("replace"), 0
    readable = is_text(kind)
    async for piece in answer.exchange.pieces():
        size += len(piece)
        text = decoder.decode(piece).replace("\r\n", "\n") if readable else ""
        if len(text) < _SHORT:
            yield lines(text), piece
        else:  # escapes of many characters take a while
            yield await _threads.run(user, partial(lines, text)), piece
        if readable and size >= MOST_TEXT:
            return


async def whole(visit: Visit, revision: Revision, call: Call) -> Shown:
    """Call an endpoint, and return its answer when that is whole; for browsers without the script."""
    found, texts = Shown(), list[str]()
    async for event in events(visit, revision, call):
        found.seconds = event.get("seconds", found.seconds)
        if event["event"] == "head":
            found.status, found.kind = event["status"], event["type"]
        elif event["event"] == "text":
            texts.append(event["text"])
        elif event["event"] == "file":
            found.element, found.address = event["element"], event["address"]
        elif event["event"] == "end":
            found.size, found.problem = event["bytes"], event["note"]
        else:
            found.problem, found.hint = event["message"], event["hint"]
    found.text = "".join(texts)
    return found


def refused(visit: Visit, error: errors.AtollError) -> Response:
    """Return the reason for which nothing is called, for the page's script."""

    async def pieces() -> AsyncIterator[str]:
        yield json.dumps({"event": "failed", "message": error.message, "hint": error.hint, "seconds": 0.0}) + "\n"

    return _lines(visit, pieces())


def streamed(visit: Visit, revision: Revision, call: Call) -> Response:
    """Return the answer of an endpoint as lines of JSON, for the page's script."""

    async def pieces() -> AsyncIterator[str]:
        async for event in events(visit, revision, call):
            yield json.dumps(event) + "\n"

    return _lines(visit, pieces())


def _lines(visit: Visit, pieces: AsyncIterator[str]) -> Response:
    return live.stream(visit, pieces, seconds=float("inf"), first="\n", quiet="\n", media_type=TYPE)
