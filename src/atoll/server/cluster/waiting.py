"""Calls that wait for a machine, as the rows and answers of a daemon about calls that wait for a worker."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from atoll import errors
from atoll.daemon.claims import read_claim
from atoll.daemon.request_arguments import is_text
from atoll.daemon.running_calls import EMPTY, MOST_ROWS, MOST_TEXT
from atoll.server.cluster.links.arrival import Arrival
from atoll.server.principal import Principal

LEAST_START = 4
"""Characters of an id by which a call can be named."""


def rows(arrivals: Iterable[Arrival], user: str | None) -> list[dict[str, Any]]:
    """Return a row for each call of a user, or of all, that has no machine yet."""
    found = (row_of(one) for one in arrivals if user in (None, one.principal.user))
    return [row for row in found if row is not None][:MOST_ROWS]


def row_of(arrival: Arrival) -> dict[str, Any] | None:
    """Return the row of a line that waits for a machine with its call; None for one that has no call, or is over."""
    header = arrival.header
    claim = read_claim(header.get("for")) if header is not None and header["type"] == "lease" else None
    spec = header.get("spec") if header is not None else None
    if claim is None or arrival.over or not isinstance(spec, dict):
        return None
    call, at, parent = claim
    now = time.time()
    return {
        **EMPTY,
        "call": call,
        "function": _text(spec.get("function")),
        "state": "waiting",
        "since": arrival.since,
        "queued_at": at if 0 < at <= now else arrival.since,
        "position": arrival.waits[0],
        "detail": arrival.waits[1][:MOST_TEXT],
        "machine_type": _text(spec.get("machine_type")),
        "parent": parent,
        "user": arrival.principal.user,
        "node": "",
    }


def _text(value: Any) -> str:
    """Return a client's text, if it is one that answers can have."""
    return str(value)[:MOST_TEXT] if is_text(value) else ""


def cancel(arrivals: Iterable[Arrival], principal: Principal | None, start: Any) -> dict[str, Any] | None:
    """Cancel the one call that waits for a machine and has an id that begins so; None where there is no such one."""
    if not isinstance(start, str) or len(start) < LEAST_START:
        return None
    user = None if principal is None or principal.may_administer else principal.user
    rows = [(one, row) for one in arrivals if user in (None, one.principal.user) and (row := row_of(one)) is not None]
    found = [(one, row) for one, row in rows if row["call"].startswith(start)]
    if len(found) != 1:
        return None
    ((arrival, row),) = found
    arrival.fail(
        errors.CallCancelled("the call was cancelled with `atoll cancel`", hint="nothing to do: it was asked for")
    )
    seconds = time.time() - row["since"]
    return {
        "call": row["call"],
        "function": row["function"],
        "state": "waiting",
        "seconds": seconds,
        "grace_seconds": 0.0,
        "ended": True,
    }
