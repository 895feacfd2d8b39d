"""States of served functions as texts."""

from __future__ import annotations

import time
from typing import Any

from atoll.cli.calls.rows import duration


def state_of(one: dict[str, Any]) -> str:
    """Return the state of a revision, or of a served function of an app: its workers, or the reason that there are none."""
    failing, count = one.get("failing"), one.get("runners", 0)
    if failing is None:
        return f"{count} worker{'s' if count > 1 else ''}" if count else "idle"
    if not failing["next_try"]:
        return f"failing: {failing['error']}, next try by a request"
    seconds = max(failing["next_try"] - time.time(), 0.0)
    return f"failing: {failing['error']}, next try in {f'{seconds:.0f} s' if seconds < 60 else duration(seconds)}"
