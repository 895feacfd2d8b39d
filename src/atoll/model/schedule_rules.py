"""Rules of functions that a server calls by the clock, as both ends know them."""

from __future__ import annotations

OVERLAPS = ("skip", "queue", "allow")
MISSED = ("skip", "once", "all")


def check(name: str, value: str) -> str:
    """Check the shape of a cron expression alone: the server, which has the clock, reads the fields.

    Raises:
        ValueError: it has another number of fields.
    """
    if not (len(value.split()) in (5, 6) or value.strip().startswith("@")):
        raise ValueError(
            f"`{name}` must have minute, hour, day of the month, month and day of the week, such as "
            f'"0 7 * * *", is {value!r}'
        )
    return value.strip()
