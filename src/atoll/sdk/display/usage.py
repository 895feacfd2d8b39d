"""Memory of this process's running calls, asked of the daemon while a line about them is drawn; records of ended ones.

At most one request about running calls at a time, and one in `EVERY_SECONDS`. Requests have threads of their own: a daemon
that is busy does not keep a caller from its answer, or no longer than `RECORD_SECONDS`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from atoll import errors

EVERY_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""Seconds that a daemon has to greet."""
MOST_FAILURES = 3
RECORD_SECONDS = 1.0
"""Seconds in which the record of a call comes that has just been answered: its worker sends it beside the answer."""
INTERRUPTED_SECONDS = 0.3
"""The same for a call that a person has interrupted, and who waits for the prompt."""
AGAIN_SECONDS = 0.02
MOST_KNOWN = 1000
"""Calls whose numbers are kept."""


@dataclass(frozen=True)
class Ran:
    """The record of a call, as `atoll calls list` shows it.

    Args:
        seconds: of the function itself.
        waited_seconds: before it, builds included.
    """

    seconds: float
    waited_seconds: float
    peak_bytes: int


class Usage:
    """The last answer; safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}
        self._asked_at = 0.0
        self._asking = False
        self._failures = 0
        self._missed = 0
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

    def record(self, call: str, seconds: float, most_seconds: float) -> Ran | None:
        """Return the record of a call that has ended; None where the daemon has none.

        Args:
            seconds: since the call began: an earlier attempt has the same id.
            most_seconds: to wait for the record.
        """
        if self._missed >= MOST_FAILURES:  # no records are kept
            return None
        found: list[Ran] = []
        until = time.monotonic() + most_seconds
        asking = threading.Thread(
            target=self._look_up, args=(call, time.time() - seconds, until, found), name="atoll-usage", daemon=True
        )
        try:
            asking.start()
        except RuntimeError:  # the interpreter ends and starts no thread
            return None
        asking.join(most_seconds)
        self._missed = 0 if found else self._missed + 1
        return found[0] if found else None

    def _look_up(self, call: str, since: float, until: float, found: list[Ran]) -> None:
        from atoll.host.local import local

        try:
            while True:
                records: Any = ()
                try:
                    answer = local.request_running("calls.show", {"call": call}, greeting_seconds=ANSWER_SECONDS)
                    records = answer["calls"] if answer is not None else ()
                except errors.ResourcesUnavailable:  # not yet
                    pass
                for one in records:
                    if one["call"] == call and one["started_at"] >= since - 0.1:
                        found.append(Ran(one["wall_seconds"], one["queue_seconds"], one["peak_bytes"]))
                        return
                if time.monotonic() >= until:
                    return
                time.sleep(AGAIN_SECONDS)
        except Exception:  # the line does without
            return

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
