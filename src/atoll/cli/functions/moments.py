"""Moments of schedules as texts."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime


def moment(at: float, timezone: str = "UTC") -> str:
    """Return a moment (seconds since the epoch) in a time zone, with its name; empty for 0."""
    if not at:
        return ""
    try:
        zone = zoneinfo.ZoneInfo(timezone)
        return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S %Z}"
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # a machine without such a file
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
