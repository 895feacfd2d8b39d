"""The server's side of the driver: starts the child process, reads its messages, and starts it again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atoll import errors, process, settings
from atoll.server.ray import messages

FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 15.0
STOP_SECONDS = 5.0

_log = logging.getLogger("atoll.server")


class Supervisor:
    """Keeps a driver running. Without one, what it was told stays true in the meantime, and is told again to the next.

    Args:
        options: of the driver, as `driver.Driver` has them.
        log: file that takes what the driver prints.
        hear: takes its messages.
    """

    def __init__(self, options: Mapping[str, Any], log: Path, hear: Callable[[dict[str, Any]], None]) -> None:
        self._options = options
        self._log_path = log
        self._hear = hear
        self._writer: asyncio.StreamWriter | None = None
        self.pid = 0
        self.starts = 0
        self.failure: errors.AtollError | None = None
        """Why the last driver could not connect."""

    def send(self, **message: Any) -> None:
        """Send a message, if there is a driver."""
        if self._writer is not None:
            self._writer.write(messages.line(message))

    async def run(self) -> None:
        """Keep a driver running until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            ready = await self._run_once()
            pause = FIRST_PAUSE_SECONDS if ready else min(2 * pause, MOST_PAUSE_SECONDS)
            cause = self.failure.message if self.failure else "it ended"
            _log.warning("ray.no_driver", extra={"fields": {"cause": cause, "again_seconds": pause}})
            await asyncio.sleep(pause)

    async def _run_once(self) -> bool:
        """Run one driver to its end; return whether it had connected."""
        loop = asyncio.get_running_loop()
        self.starts += 1
        orders, to_child = os.pipe()
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, orders)
            log = opened.enter_context(open(self._log_path, "ab", buffering=0, opener=_private))  # noqa: ASYNC230
            child = process.Child(
                [sys.executable, "-m", "atoll.server.ray.driver", json.dumps(dict(self._options))],
                env=settings.environment_with({"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}),
                stdin=orders,
                stdout=process.PIPE,
                stderr=log,
            )
        self.pid = child.pid
        assert child.stdout is not None
        said = asyncio.StreamReader(limit=messages.MOST_BYTES)
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), child.stdout)
        writing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(to_child, "wb"))
        self._writer = asyncio.StreamWriter(writing, protocol, None, loop)
        ready = False
        try:
            async for data in said:
                message = messages.parse(data)
                if message["event"] == "failed":
                    self.failure = errors.from_data(message["error"])
                    continue
                if message["event"] == "ready":
                    ready, self.failure = True, None
                self._hear(message)
        finally:
            self._writer = None
            self.pid = 0
            writing.close()
            reading.close()
            with contextlib.suppress(TimeoutError):  # the end of its input ends it
                await asyncio.wait_for(child.wait(), STOP_SECONDS)
            await child.stop()
            self._hear({"event": "gone"})
        return ready


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
