"""One attempt of a queued request: it is sent to a runner, and its answer is kept whole."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from atoll import errors
from atoll.server.endpoints.exchange import RunnerGone
from atoll.server.endpoints.passing import Answer, Asked, passed
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.queue.files import ANSWER, BODY, INLINE_BYTES, Files
from atoll.server.queue.rows import Outcome

WHOLE_BYTES = 16 << 20
"""Bodies up to here are sent with their length; larger ones in chunks, which not all functions' servers know."""
AGAIN = frozenset({429, 503, 504})
"""Answers of a function's that are no answers: the request is sent again."""
_DROPPED = {
    *(b"content-length", b"date", b"server", b"set-cookie", b"clear-site-data", b"strict-transport-security"),
    *(b"x-request-id", b"x-fal-request-id"),
}
"""Headers of an answer that belong to its connection, or that would have power over the server's own pages."""

log = logging.getLogger("atoll.queue")


@dataclass(frozen=True)
class Attempted:
    """What has come of an attempt; `again` where the request may be sent once more."""

    outcome: Outcome
    again: bool = False


def failed(
    status: int,
    kind: str,
    text: str,
    *,
    began: float = 0.0,
    again: bool = False,
    headers: tuple[tuple[str, str], ...] = (),
) -> Attempted:
    """Return an end without an answer of the function's."""
    seconds = time.monotonic() - began if began else 0.0
    return Attempted(Outcome(status, headers, None, 0, text, kind, seconds), again)


async def attempted(
    pool: Pool, runner: Runner, asked: Asked, body: bytes | None, size: int, files: Files, most: int
) -> Attempted:
    """Send a request to a runner that has a place for it, and return what has come of it.

    Args:
        body: None for one that is a file.
        size: bytes of the body.
        most: bytes of an answer.
    """
    began = time.monotonic()
    more: AsyncIterator[bytes] | None = None
    try:
        if body is None and size > WHOLE_BYTES:
            body, more = b"", files.pieces(asked.id, BODY)
        elif body is None:
            body = await files.read(asked.id, BODY)
        async with passed(pool, runner, asked, body, more) as answer, asyncio.timeout(_seconds(pool)):
            return await _whole(answer, asked, files, most, began)
    except RunnerGone as error:
        kind = "runner_incomplete_response" if error.details.get("began") else "runner_disconnected"
        return failed(503, kind, error.message, began=began, again=True)
    except TimeoutError:
        text = "the function did not answer in time"
        return failed(504, "request_timeout", text, began=began, again=True)
    except (errors.DiskFull, errors.StateUnusable) as error:  # of the answer, which is not kept: as if it were lost
        return failed(507, "disk_full", error.message, began=began, again=True)
    except errors.HostUnreachable as error:
        return failed(503, "runner_connection_error", error.message, began=began, again=True)
    except errors.AtollError as error:
        return failed(500, "internal_error", error.message, began=began)
    except FileNotFoundError:
        return failed(500, "internal_error", "the body is gone: a backup has no large ones", began=began)
    except Exception as error:
        log.exception("queue_attempt_failed", extra={"fields": {"request": asked.id}})
        return failed(500, "internal_error", f"the server failed: {type(error).__name__}", began=began)


def _seconds(pool: Pool) -> float | None:
    return pool.revision.options.request_timeout or None


async def _whole(answer: Answer, asked: Asked, files: Files, most: int, began: float) -> Attempted:
    """Keep an answer: a small one in memory, for its row; others in a file."""
    headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in answer.kept(own_host=False) if n not in _DROPPED]
    first = bytearray()
    kept: bytes | None = None
    size = 0
    pieces = answer.exchange.pieces()
    async for piece in pieces:
        first += piece
        size += len(piece)
        if size > INLINE_BYTES:
            break
    if size <= INLINE_BYTES:
        kept = bytes(first)
    else:
        async with files.writing(asked.id, ANSWER) as file:
            await file.write(bytes(first))
            async for piece in pieces:
                size += len(piece)
                if size > most:
                    answer.exchange.reusable = False
                    text = f"the answer has more than {most:,} bytes, the most that is kept"
                    return failed(502, "runner_incomplete_response", text, began=began)
                await file.write(piece)
            await file.keep()
    error = "" if answer.status // 100 in (2, 3) else f"Invalid status code: {answer.status}"
    kind = "runner_server_error" if answer.status >= 500 else "bad_request" if error else ""
    outcome = Outcome(answer.status, headers, kept, size, error, kind, time.monotonic() - began)
    return Attempted(outcome, again=answer.status in AGAIN)
