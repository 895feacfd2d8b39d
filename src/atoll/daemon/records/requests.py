"""Clients' requests about records of calls, as messages: names and JSON-compatible data in, data out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from atoll import errors
from atoll.daemon.records.recorder import Recorder
from atoll.model.records import OUTCOMES, CallRecord
from atoll.terminal_text import cell

MOST_LISTED = 100_000
MOST_MATCHES = 50
MOST_GROUPS = 20_000
"""Groups of an answer about usage."""
LEAST_CHARACTERS = 4
"""Characters of the beginning of an id that stands for it."""
MOST_CANDIDATES = 5
"""Calls that an error names."""


async def handle(recorder: Recorder, user: str | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Perform a request.

    - `calls.list` (`limit`, `offset`; `function`, `outcome`, `parent`, `since` if given): gives `calls`, newest first.
    - `calls.usage` (`since`, seconds since the epoch): gives `usage`, sums by function, day, environment and outcome.
    - `calls.show` (`call`, an id or its beginning): gives `calls`, the attempts of the one call, and its `children`.
    - `calls.output` (`call`, as above): the same `calls`, each with `printed_bytes` and `output`, the end of it.

    Args:
        user: whose calls; None for those of all users, but for sums.

    Raises:
        ValueError: an argument has the wrong type.
        ResourcesUnavailable: no call, or more than one, has an id that begins so.
        StateUnusable: the records cannot be read.
    """
    if name == "calls.list":
        filters = _filters(arguments)
        limit = arguments.get("limit", 50)
        if type(limit) is not int or not 0 <= limit <= MOST_LISTED:
            raise ValueError(f"`limit` must be a number from 0 to {MOST_LISTED}")
        offset = arguments.get("offset", 0)
        if type(offset) is not int or not 0 <= offset <= MOST_LISTED:
            raise ValueError(f"`offset` must be a number from 0 to {MOST_LISTED}")
        found = await _ask(recorder, lambda database: database.list(user, filters, limit, offset))
        return {"calls": [record.to_data() for record in found]}
    if name == "calls.usage":
        since = _filters(arguments).get("since", 0.0)
        whose = user or ""
        return {"usage": list(await _ask(recorder, lambda database: database.usage(whose, since, MOST_GROUPS)))}
    if name not in ("calls.show", "calls.output"):
        raise errors.ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer start")
    calls = await find(recorder, user, arguments.get("call"))
    if name == "calls.show":
        call, whose = calls[0].call, calls[0].user
        children = await _ask(recorder, lambda database: database.list(whose, {"parent": call}, MOST_MATCHES))
        return {"calls": [one.to_data() for one in calls], "children": [one.to_data() for one in children]}
    answers = []
    for one in calls:
        printed, tail = await _ask(recorder, lambda database, one=one: database.output(one.user, one.call, one.worker))
        answers.append({**one.to_data(), "printed_bytes": printed, "output": tail.decode("utf-8", "replace")})
    return {"calls": answers}


def check_start(start: Any) -> None:
    """Refuse what cannot be an id or its beginning.

    Raises:
        ValueError: always then.
    """
    if not isinstance(start, str) or not start or len(start) > 200 or "\0" in start:
        raise ValueError("`call` must be an id or its beginning")


async def find(recorder: Recorder, user: str | None, start: Any) -> list[CallRecord]:
    """Return the attempts of the one call whose id is `start` or begins so.

    Raises:
        ValueError, ResourcesUnavailable: as `handle`.
    """
    check_start(start)
    found: list[CallRecord] = []
    for name in ("call", "start") if len(start) >= LEAST_CHARACTERS else ("call",):
        found = found or await _ask(recorder, lambda db, name=name: db.list(user, {name: start}, MOST_MATCHES))
    check_one(start, {record.call: record.function for record in found})
    if len({record.user for record in found}) > 1:  # ids are drawn by clients
        raise errors.ResourcesUnavailable(
            f"several users have a call with the id `{start}`", hint="see `atoll calls list --user NAME`"
        )
    return found


def check_one(start: str, found: Mapping[str, str]) -> None:
    """Refuse the beginning of an id that is none's, or that of several calls.

    Args:
        found: the functions of the calls whose ids begin so, by id.

    Raises:
        ResourcesUnavailable: there is not exactly one.
    """
    if not found and len(start) < LEAST_CHARACTERS:
        raise errors.ResourcesUnavailable(
            f"`{start}` is no id of a call", hint=f"give {LEAST_CHARACTERS} characters of one: see `atoll calls list`"
        )
    if not found:
        raise errors.ResourcesUnavailable(
            f"no call has an id that begins with `{start}`", hint="see `atoll calls list`"
        )
    if len(found) > 1:
        shown = ", ".join(f"`{cell(call)}` ({cell(found[call])})" for call in sorted(found)[:MOST_CANDIDATES])
        more = " and more" if len(found) > MOST_CANDIDATES else ""
        raise errors.ResourcesUnavailable(
            f"more than one call has an id that begins with `{start}`", hint=f"one of {shown}{more}"
        )


async def output_of(recorder: Recorder, user: str, call: str, worker: str) -> tuple[int, bytes]:
    """Return how many bytes a call has printed on a worker, and the last of them."""
    printed, tail = await _ask(recorder, lambda database: database.output(user, call, worker))
    return printed, tail


async def _ask(recorder: Recorder, question: Any) -> Any:
    return await asyncio.wrap_future(recorder.ask(question))


def _filters(arguments: dict[str, Any]) -> dict[str, Any]:
    filters: dict[str, Any] = {}
    for name in ("function", "outcome", "parent"):
        value = arguments.get(name)
        if value is not None:
            if not isinstance(value, str) or "\0" in value:
                raise ValueError(f"`{name}` must be text")
            filters[name] = value
    if filters.get("outcome", "ok") not in OUTCOMES:
        raise ValueError(f"`outcome` must be one of {', '.join(OUTCOMES)}")
    since = arguments.get("since")
    if since is not None:
        if isinstance(since, bool) or not isinstance(since, (int, float)):
            raise ValueError("`since` must be seconds since the epoch")
        filters["since"] = float(since)
    return filters
