"""The log of the server: a JSON object for each event, or a line of text for people on a terminal.

An event is a constant name, or a text with `name=value` fields as the daemon's; fields of its own come in `extra`:
`log.info("line_opened", extra={"fields": {"user": "u1"}})`. Bodies, headers, queries and keys are in no event.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from atoll.terminal_text import printable


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
