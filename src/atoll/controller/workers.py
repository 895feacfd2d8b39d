"""Variables of functions: secrets of the user, and a key of their own, with which they call other functions."""

from __future__ import annotations

import threading
import time
from typing import Any

from atoll.controller.callers import Caller

KEY_SECONDS = 24 * 3600.0
"""A key of a function's ends by then, or with the key that its caller has."""
RENEW_SECONDS = 12 * 3600.0
"""Calls that begin later get another key."""
MOST_KEYS = 10_000


class WorkerKeys:
    """Keys of functions: one for each key of a caller's, made when it first calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str, str]] = {}

    def key(self, caller: Caller) -> tuple[str, str]:
        """Return id and secret of a key.

        Raises:
            AtollError: none can be made.
        """
        own = caller.host.server.key_id
        with self._lock:
            found = self._known.get(own)
            if found is not None and time.monotonic() - found[0] < RENEW_SECONDS:
                return found[1:]
        asked = {"scope": "ADMIN", "alias": "of functions", "expires_seconds": KEY_SECONDS}
        made = caller.ask("POST", "/v1/keys", asked)
        with self._lock:
            if len(self._known) >= MOST_KEYS:
                self._known.clear()
            self._known[own] = time.monotonic(), made["id"], made["secret"]
        return made["id"], made["secret"]


def surroundings(caller: Caller, service: Any, asked: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return variables of a function, and the names of the secrets that it has besides.

    Args:
        service: has `keys` and `api`.
        asked: the message that names secrets, where it does.

    Raises:
        AtollError: the server does not tell.
    """
    listed = [one["name"] for one in caller.host.request("secrets.list", {})["secrets"]]
    if asked.HasField("secrets") and asked.secrets.names:
        listed = [name for name in asked.secrets.names if name in listed]
    found = {"IS_ISOLATE_AGENT": "1"}
    if service.api:  # else nothing that a function could reach
        key_id, secret = service.keys.key(caller)
        found |= {
            "FAL_HOST": service.api,
            "FAL_KEY_ID": key_id,
            "FAL_KEY_SECRET": secret,
            "FAL_KEY": f"{key_id}:{secret}",
        }
    return found, tuple(listed)
