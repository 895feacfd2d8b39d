"""Memory of this process's running calls, asked of the daemon while a line about them is drawn.

At most one request at a time, and one in `EVERY_SECONDS`, on a thread of its own: a daemon that is busy does not keep
a caller from its answer.
"""

from __future__ import annotations

import threading
import time
from typing import Any

EVERY_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""Seconds that a daemon has to greet."""
MOST_FAILURES = 3
MOST_KNOWN = 1000
"""Calls whose numbers are kept."""


class Usage:
    """The last answer; safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}
        self._asked_at = 0.0
        self._asking = False
        self._failures = 0
        self._lock = threading.Lock()

    def now(self, call: str) -> int:
        """Return the bytes of memory that a running call uses, 0 where unknown; ask again if it is time."""
        now = time.monotonic()
        if now - self._asked_at >= EVERY_SECONDS and self._failures < MOST_FAILURES:
            with self._lock:
                is_due, self._asking = not self._asking, True
            if is_due:
                self._asked_at = now
                threading.Thread(target=self._ask, name="atoll-usage", daemon=True).start()
        return self._known.get(call, (0, 0))[0]

    def peak(self, call: str) -> int:
        """Return the most that has been seen of a call, and forget it."""
        return self._known.pop(call, (0, 0))[1]

    def _ask(self) -> None:
        try:
            from atoll.host.local import local

            answer = local.request_running("calls.running", {}, greeting_seconds=ANSWER_SECONDS) or {}
            for row in answer.get("calls", ()):
                self._note(row)
            self._failures = 0
        except Exception:  # the display does without
            self._failures += 1
        finally:
            self._asking = False

    def _note(self, row: dict[str, Any]) -> None:
        call, used, most = row.get("call"), row.get("memory_bytes") or 0, row.get("peak_bytes") or 0
        if isinstance(call, str) and all(isinstance(one, (int, float)) and one >= 0 for one in (used, most)):
            before = self._known.get(call, (0, 0))[1]
            self._known[call] = int(used), int(max(used, most, before))
            while len(self._known) > MOST_KNOWN:
                self._known.pop(next(iter(self._known)), None)


usage = Usage()


def renew() -> None:
    """Start afresh in a forked child, whose calls are others."""
    global usage
    usage = Usage()
