"""Ends of detached calls in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_TEXT = 400


def failure_of(row: Mapping[str, Any]) -> str:
    """Return the reason that a finished detached call has no result, such as `ValueError: no model`; empty for none.

    Args:
        row: as the node describes the call.
    """
    error = row.get("error") or {}
    reason = str(error.get("text") or error.get("message") or "") if row.get("outcome") != "ok" else ""
    kind = str(error.get("type") or error.get("code") or "")
    return (f"{kind}: {reason}" if kind and reason else kind or reason)[:MOST_TEXT]
