"""Moments of a cron expression in a time zone.

Theory of operation. Expressions mean what Debian's cron makes of them (`cronsim`). Where the clocks go forward, a run at
a fixed time in the hour that does not exist happens at the first moment after it; where they go back, a run at a fixed
time in the hour that exists twice happens in the first of the two. Runs whose minute or hour begins with `*` are spread
over real time: they follow the clock of the wall through both hours, and have none in the hour that does not exist.
"""

from __future__ import annotations

import functools
import zoneinfo
from datetime import UTC, datetime, tzinfo

from cronsim import CronSim, CronSimError

from atoll import errors
from atoll.near_names import nearest
from atoll.terminal_text import cell

MOST_CHARACTERS = 200
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_HINT = (
    "an expression has minute, hour, day of the month, month and day of the week, such as `0 7 * * *` for each day at "
    "7:00, and may have seconds before them"
)


def check(expression: str, timezone: str) -> None:
    """Check that an expression has a moment to come.

    Raises:
        CallerError: it is none, names an unknown time zone, or describes no day that exists.
    """
    zone = zone_of(timezone)
    shown = cell(expression, MOST_CHARACTERS)
    if len(expression) > MOST_CHARACTERS:
        raise errors.CallerError(f"a schedule has at most {MOST_CHARACTERS} characters", hint=_HINT)
    try:
        found = _after(expression, zone, datetime.now(UTC).timestamp())
    except CronSimError as error:
        words = str(error)
        reason = f": {words[:1].lower()}{words[1:]}" if words else ""
        raise errors.CallerError(f"`{shown}` is no schedule{reason}", hint=_HINT) from error
    if not found:
        raise errors.CallerError(
            f"`{shown}` describes no moment of the next 50 years", hint="look at its day and its month"
        )


@functools.lru_cache(1000)
def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name.

    Raises:
        CallerError: there is none of this name.
    """
    if name.upper() == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        close = nearest(name, sorted(zoneinfo.available_timezones()))
        hint = f"did you mean `{close}`?" if close else "give a name such as `Europe/Berlin`, or `UTC`"
        raise errors.CallerError(f"there is no time zone `{cell(name, 64)}`", hint=hint) from error


def after(expression: str, timezone: str, moment: float) -> float:
    """Return the first moment of a schedule after this one; 0 where there is none.

    Args:
        expression, timezone: as `check` has found them good.
    """
    return _after(expression, zone_of(timezone), moment)


def _after(expression: str, zone: tzinfo, moment: float) -> float:
    fields = _NAMED.get(expression.strip().lower(), expression)
    if not fields.isascii():
        raise CronSimError("it has characters that are no ASCII")
    for found in CronSim(fields, datetime.fromtimestamp(moment, zone)):
        seconds = found.timestamp()
        if seconds > moment:  # in the second of two equal hours the first one is found again
            return seconds
    return 0.0
