"""The log of the server: a JSON object for each event, or a line of text for people on a terminal.

An event is a constant name, or a text with `name=value` fields as the daemon's; fields of its own come in `extra`:
`log.info("line_opened", extra={"fields": {"user": "u1"}})`. Bodies, headers, queries and keys are in no event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from atoll.terminal_text import printable

WRITTEN_SECONDS = 0.1
"""Seconds that lines of requests wait for others."""


class JsonFormat(logging.Formatter):
    """Formats an event as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        found.update(getattr(record, "fields", {}))
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


class TextFormat(logging.Formatter):
    """Formats an event as a line of text, whose values cannot act on a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        record.message = printable(f"{record.message} {fields}".rstrip())
        return super().formatMessage(record)


class CutOff(ConnectionError):
    """An answer that has begun and cannot be completed: its connection ends, and the log has its request."""


def _is_told(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], CutOff))


def set_up() -> None:
    """Have all events of this process written to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr is not None and sys.stderr.isatty():
        handler.setFormatter(TextFormat("%(asctime)s %(levelname)s %(name)s %(message)s"))
    else:
        handler.setFormatter(JsonFormat())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "httpx", "httpcore", "alembic", "asyncio"):  # hostile requests could fill the disk
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_is_told)


class RequestLines:
    """The log's line for each request: those of a tenth of a second are written together, for a tenth of the price."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("atoll.access")
        self._lines: list[bytes] = []
        self._second, self._text = 0, ""

    def add(self, **fields: Any) -> None:
        """Add the line of one request; for the event loop's thread."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        stream = _stream_of_json()
        if stream is None:
            self._logger.info("request", extra={"fields": fields})
            return
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        moment = f"{self._text}.{int(now % 1 * 1000):03d}Z"
        head = {"time": moment, "level": "info", "logger": "atoll.access", "event": "request"}
        self._lines.append(msgspec.json.encode(head | fields))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(WRITTEN_SECONDS, self.write)

    def write(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        stream = _stream_of_json()
        if lines and stream is not None:
            with contextlib.suppress(OSError, ValueError):  # as logging does, the server goes on without its log
                stream.write(b"\n".join([*lines, b""]).decode())
                stream.flush()

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Write the last lines when the context closes."""
        try:
            yield
        finally:
            self.write()


def _stream_of_json() -> Any:
    """Return the stream that the log's lines of JSON go to; None for lines of text, or other handlers."""
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], logging.StreamHandler):
        return handlers[0].stream if isinstance(handlers[0].formatter, JsonFormat) else None
    return None
