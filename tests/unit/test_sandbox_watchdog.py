"""The watchdog's own bookkeeping, beside threads."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from atoll.sandbox.limits import memory_watchdog
from atoll.sandbox.limits.memory_watchdog import Watchdog

if TYPE_CHECKING:
    import pytest


def test_one_thread_may_poll_while_another_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is added just while the others are looked at is counted, and nothing goes wrong."""
    looking, added = threading.Event(), threading.Event()
    known = memory_watchdog.started_at

    def look(pid: int) -> int:
        if threading.current_thread() is not threading.main_thread() and not looking.is_set():
            looking.set()
            added.wait(0.2)  # long enough for who does not wait its turn
        return known(pid) if pid != os.getppid() else 1

    guard = Watchdog(1 << 40)
    guard.add(os.getpid())
    monkeypatch.setattr(memory_watchdog, "started_at", look)
    failures: list[BaseException] = []

    def poll() -> None:
        try:
            guard.poll()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    assert looking.wait(120)
    guard.add(os.getppid())
    added.set()
    thread.join()
    assert not failures
    assert {os.getpid(), os.getppid()} <= guard._members.keys()
