"""A generator that is ahead of its consumer computes nothing while it waits, so that its core is lent to others.

Whether a send waits is known only while it does: a thread of the worker looks at it, and tells the daemon when it has
waited for `PATIENCE_SECONDS`, and the worker tells when it goes on. Without that, a loop over the items that makes
calls of its own would wait for ever where the generator has the last core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 0.05


class Pacer:
    """Watches the sends of one generator's items.

    Args:
        tell: takes a message to the daemon; from any thread.
        epoch: of the lease.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], epoch: int) -> None:
        self._tell = tell
        self._epoch = epoch
        self._lock = threading.Lock()
        self._since = 0.0
        self._told = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="atoll-pacer", daemon=True).start()

    def __enter__(self) -> None:
        """Begin to send an item."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._since = 0.0
            if self._told:
                self._told = False
                self._tell({"type": "resumed", "epoch": self._epoch})

    def close(self) -> None:
        """End the watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(PATIENCE_SECONDS):
            with self._lock:
                if self._since and not self._told and time.monotonic() - self._since >= PATIENCE_SECONDS:
                    self._told = True
                    try:
                        self._tell({"type": "paused", "epoch": self._epoch})
                    except OSError:  # the daemon is gone, and so is this soon
                        return
