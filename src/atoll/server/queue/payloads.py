"""Payloads: the words to a webhook about a request that is over."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from atoll.server.queue import rows
from atoll.server.queue.files import ANSWER
from atoll.server.queue.queue import Queue

MOST_BYTES = 16 << 20
"""The most of an answer that is told; a larger one is to be fetched."""


async def payload(queue: Queue, request: str) -> bytes | None:
    """Return the body of a webhook's delivery; None where there is nothing to tell any more."""
    known = await queue.database.run(partial(rows.find, request=request), writes=False)
    if known is None or known.state != rows.OVER:
        return None
    data: dict[str, Any] = {
        "request_id": known.id,
        "gateway_request_id": known.attempt,
        "status": "ERROR" if known.error else "OK",
        "error": known.error or None,
        "payload": None,
    }
    if known.error_type:
        data["error_type"] = known.error_type
    if known.answer_bytes > MOST_BYTES:
        data["payload_error"] = f"the answer has {known.answer_bytes:,} bytes: fetch it from the queue"
    elif known.answer_bytes:
        body = await queue.answer(known)
        if body is None:
            body = await queue.files.read(known.id, ANSWER)
        try:
            msgspec.json.decode(body)
            data["payload"] = msgspec.Raw(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            data["payload_error"] = "the answer is no JSON"
    return msgspec.json.encode(data)
